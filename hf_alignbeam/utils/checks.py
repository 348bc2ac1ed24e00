"""Checks of arguments that many classes share.

Knows names and values. Knows no setting.
"""

from collections.abc import Mapping
from numbers import Integral, Real


def refuse_none(values: Mapping[str, object], *nullable: str) -> None:
    """Raise ValueError for a value that is None, unless its name is among `nullable`."""
    for name, value in values.items():
        if value is None and name not in nullable:
            raise ValueError(f"`{name}` must have a value, got None. Leave it out for the default.")


def is_number(value: object) -> bool:
    """Whether a value is a real number, which true and false are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole_number(value: object) -> bool:
    """Whether a value is a whole number, which true and false are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_whole_number(name: str, value: object, least: int, hint: str) -> None:
    """Raise ValueError unless a value is a whole number of at least `least`; `hint` says what to give instead."""
    if not is_whole_number(value) or value < least:  # type: ignore[operator]
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}. {hint}")


def check_utf8(name: str, text: str) -> str:
    """Return a text; raise ValueError where it holds a lone surrogate, as JSON may, which UTF-8 cannot encode."""
    if text.encode(errors="ignore") != text.encode(errors="surrogatepass"):
        raise ValueError(f"{name} must be text that UTF-8 can encode, got a lone surrogate in it. Remove it.")
    return text
