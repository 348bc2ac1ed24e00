"""Checks of arguments that many classes share.

Knows names and values. Knows no setting.
"""

from collections.abc import Mapping


def refuse_none(values: Mapping[str, object], *nullable: str) -> None:
    """Raise ValueError for a value that is None, unless its name is among `nullable`."""
    for name, value in values.items():
        if value is None and name not in nullable:
            raise ValueError(f"`{name}` must have a value, got None. Leave it out for the default.")


def check_utf8(name: str, text: str) -> str:
    """Return a text; raise ValueError where it has no UTF-8, as half of a surrogate pair from JSON has none."""
    if text.encode(errors="ignore") != text.encode(errors="surrogatepass"):
        raise ValueError(f"{name} must hold text that UTF-8 can write, got half of a surrogate pair in it. Remove it.")
    return text
