"""JSON and YAML values without doubled keys and without text that cannot be encoded.

Knows the two formats and what their parsers let pass or raise. Knows no key by name and no file.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

#: No recipe and no record of a file needs more. Aliases of YAML make billions of values from a few lines.
MAX_DEPTH, MAX_PARTS = 100, 1_000_000


class _DoubledKey(dict[str, Any]):
    """A JSON object in which a key stands twice; `key` is the first such key."""

    key: str = ""


class _StrictLoader(yaml.SafeLoader):
    """A loader that refuses a key that stands twice, of which PyYAML keeps the last one."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:  # as written: merge keys are resolved later
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    raise ValueError(f"line {line} gives the key `{key.value}` again, which line {lines[name]} gives. Remove one")
                lines[name] = line
        return node


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text. Check it with `check_value`, item by item where a text holds many.

    Args:
        text: The text.
        place: Where it stands, for errors.

    Raises:
        json.JSONDecodeError: The text is not JSON.
        ValueError: It is nested too deeply, or holds a number that is too long; the message names the place.
    """
    try:
        return json.loads(text, object_pairs_hook=_json_object)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise ValueError(f"{place} must not be nested so deeply that no parser reads it. Flatten it.") from error
    except ValueError as error:  # a number with more digits than Python converts
        raise ValueError(f"{place} must hold numbers that can be read: {error}. Write it as a text.") from error


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text, checked as by `check_value`.

    Raises:
        ValueError: The text is not YAML, has a key twice, is nested too deeply, or holds text that cannot be encoded; the
            message names the place.
    """
    try:
        value = yaml.load(text, _StrictLoader)
    except RecursionError as error:
        raise ValueError(f"{place} must not be nested so deeply that no parser reads it. Flatten it.") from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError) as error:  # PyYAML's converters raise all of these
        raise ValueError(f"{place} must be YAML: {str(error).rstrip('.')}.") from error
    check_value(value, place)
    return value


def check_value(value: Any, place: str) -> None:
    """Raise ValueError where a parsed value has a key twice, text that UTF-8 cannot hold, or no end.

    Args:
        value: What a parser returned.
        place: Where it stands, for errors.
    """
    for part in _parts(value, place):
        if isinstance(part, _DoubledKey):
            raise ValueError(f"{place} must give each key once, got {part.key!a} twice. Remove one.")
        if isinstance(part, str):
            try:
                part.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{place} must hold text that UTF-8 can encode, got half a character, {part[error.start]!a}, in "
                    f"{part[:80]!a}. Write the whole character, or remove it."
                ) from error


def _parts(value: Any, place: str) -> Iterator[Any]:
    """A value and everything in it. YAML may name one value in many places, and in itself: what is too much is refused."""
    pending, n_parts = [(value, 0)], 0
    while pending:
        (part, depth), n_parts = pending.pop(), n_parts + 1
        if depth > MAX_DEPTH or n_parts > MAX_PARTS:
            raise ValueError(
                f"{place} must have at most {MAX_DEPTH} levels and {MAX_PARTS:,} values, got more. Flatten or split it."
            )
        yield part
        if isinstance(part, Mapping):
            pending += [(each, depth + 1) for each in (*part.keys(), *part.values())]
        elif isinstance(part, list | tuple):
            pending += [(each, depth + 1) for each in part]


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        return dict(pairs)
    doubled = _DoubledKey(pairs)
    doubled.key = next(key for n, key in enumerate(keys) if key in keys[:n])
    return doubled
