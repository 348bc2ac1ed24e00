"""The oldest releases that the package's tests pass on: an older one is refused before anything else is imported.

Knows the metadata of what is installed. Imports neither torch nor transformers, for on an old release that is what fails.
"""

import re
from importlib.metadata import version

#: By package, its oldest release.
OLDEST = {"torch": "2.6", "transformers": "5.18"}


def check_versions() -> None:
    """Refuse an environment that is too old.

    Raises:
        ImportError: A package is older than in `OLDEST`.
    """
    for package, oldest in OLDEST.items():
        found = version(package)
        if _release(found) < _release(oldest):
            raise ImportError(
                f"`{package}` must be at least {oldest} for hf_alignbeam, got {found}. "
                f'Upgrade it with `pip install -U "{package}>={oldest}"`.'
            )


def _release(text: str) -> list[int]:
    """The first two numbers of a version."""
    return [int(number) for number in re.findall(r"\d+", text)[:2]]
