"""Objects that forget what their methods have computed, so that a benchmark computes it anew.

Knows where `cached_method` keeps results. Knows no benchmark.
"""

from hf_alignbeam.utils.method_cache import RESULTS_PREFIX


def clear_method_caches(owner: object) -> None:
    """Drop all cached results of an object's methods. A copy needs this, or it returns the results of its original."""
    for name in [name for name in vars(owner) if name.startswith(RESULTS_PREFIX)]:
        del vars(owner)[name]
