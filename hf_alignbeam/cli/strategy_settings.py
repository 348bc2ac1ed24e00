"""The option `--set`, by which a command takes every setting of a strategy, None included.

Knows names and JSON. Imports no torch, so that `--help` does not wait for it.
"""

import inspect
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer import Option

Settings = Annotated[
    list[str] | None,
    Option("--set", help="Any other setting of the strategy: NAME=VALUE, a value of JSON (null is None) or a text; repeatable."),
]


def typed_settings(typed: list[str] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were typed with `--set`, beside those that options of their own gave.

    Args:
        typed: The values of `--set`.
        options: The settings that have options.

    Returns:
        All of them.

    Raises:
        BadParameter: A value is not NAME=VALUE, or a setting is given twice.
    """
    settings = dict(options)
    for text in typed or []:
        name, sign, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name.isidentifier():
            raise typer.BadParameter(f"--set must be NAME=VALUE, got {text!r}")
        if name in settings:
            raise typer.BadParameter(f"{name} must be given once, got it again with --set {text}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def check_settings(settings: Mapping[str, Any], strategy: Any, preset: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Check settings before any model is loaded for them.

    Args:
        settings: The settings.
        strategy: The class of the strategy.
        preset: Settings that hold where these leave something out.

    Raises:
        ValueError: The class has no such setting, a command gives it itself, or a value is out of its range.
    """
    given = {"anchor", "anchor_tokenizer", "tokenizer", "judge", "accept", "model", "conversations", "streamer"}
    known = [name for name in inspect.signature(strategy).parameters if name not in given]
    for name in settings:
        if name not in known:
            raise ValueError(f"--set must name a setting of {strategy.__name__} ({', '.join(known)}), got {name!r}.")
    strategy.check_settings(**{**preset, **settings})
