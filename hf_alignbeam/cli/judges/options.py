"""The options that say how a judge is asked, the same at every command that has a judge.

Knows names and help texts. Knows no value, and imports no torch, so that `--help` does not wait for it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

from typer import Option

#: The parameter of a command that stands for all of these options.
PARAMETER = "judge_options"

_NAME = Option(help="A guard, another model or a classifier: a folder, a Hub id, or an endpoint's URL.")
JudgeName = Annotated[str, _NAME]
MaybeJudge = Annotated[str | None, _NAME]
JudgeDevice = Annotated[str | None, Option(help="The judge's device. Default: the target's.")]


@dataclass(frozen=True)
class JudgeOptions:
    """What a user typed about a judge beside its name; each field is the option `--judge-` and its name.

    `api` and `model` are for the URL of an endpoint; the others are the fields of `JudgeSettings`.
    """

    profile: Annotated[
        str | None, Option(help="How the judge is asked and answers: a known profile's name, or a YAML or JSON file.")
    ] = None
    rubric: Annotated[
        str | None,
        Option(help="For an instruct model: hidden-states (default), yes-no, one-to-five, a text or file with {conversation}."),
    ] = None
    template: Annotated[str | None, Option(help="A Jinja chat template, or a file of one. Default: the judge's own.")] = None
    labels: Annotated[
        list[str] | None, Option(help="The harm in [0, 1] of a verdict or a classifier's label: unsafe=1; may be repeated.")
    ] = None
    threshold: Annotated[
        float | None, Option(help="The judge's own threshold, reported as a harm of .5. Default: its profile's, or calibrated.")
    ] = None
    revision: Annotated[str | None, Option(help="The judge's branch, tag or commit on the Hub.")] = None
    api: Annotated[str | None, Option(help="For a URL: moderations, chat or classify. Default: moderations.")] = None
    model: Annotated[str | None, Option(help="For a URL: the model's name at that endpoint.")] = None

    @property
    def given(self) -> list[str]:
        """The options that were given, as they are typed."""
        return [f"--judge-{each.name}" for each in fields(self) if getattr(self, each.name) is not None]


def with_judge_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with one option for each field of `JudgeOptions` in place of its parameter `judge_options`."""
    own = inspect.signature(command).parameters
    options = {f"judge_{name}": hint for name, hint in get_type_hints(JudgeOptions, include_extras=True).items()}

    @wraps(command)
    def wrapped(**arguments: Any) -> None:
        typed = {name.removeprefix("judge_"): arguments.pop(name) for name in options}
        command(**arguments, **{PARAMETER: JudgeOptions(**typed)})

    added = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=h) for n, h in options.items()]
    kept = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, each in own.items() if name != PARAMETER]
    place = list(own).index(PARAMETER)
    parameters = [*kept[:place], *added, *kept[place:]]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped
