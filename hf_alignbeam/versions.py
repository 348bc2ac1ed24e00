"""The oldest releases that the tests pass on: with an older one, the package refuses to be imported.

Knows the metadata of installed packages. Imports neither torch nor transformers: on an old release that import would fail.
"""

import re
from importlib.metadata import version

#: The oldest release of each package.
OLDEST = {"torch": "2.6", "transformers": "5.18"}


def check_versions() -> None:
    """Check the installed releases.

    Raises:
        ImportError: A package is older than in `OLDEST`.
    """
    for package, oldest in OLDEST.items():
        installed = version(package)
        if _release(installed) < _release(oldest):
            raise ImportError(
                f"`{package}` must be at least {oldest} for hf_alignbeam, got {installed}. "
                f'Upgrade it with `pip install -U "{package}>={oldest}"`.'
            )


def _release(text: str) -> list[int]:
    """The first two numbers of a release: 5.18 of 5.18.0rc1."""
    return [int(number) for number in re.findall(r"\d+", text)[:2]]
