"""What is to be measured: models, systems and prompt sets, read from YAML and checked.

Knows names and settings. Loads no model, reads no prompt.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

RECIPES = Path(__file__).parent / "recipes"
#: What the testbed's models, judges and prompts are named with.
TESTBED = "testbed:"

Spec = TypeVar("Spec")

Kind = Literal["plain", "anchor", "system-prompt", "anchor-logits", "alignbeam", "output-filter", "steerer"]
#: What each kind of system needs beside the target.
NEEDS: dict[Kind, tuple[str, ...]] = {
    "plain": (),
    "anchor": ("anchor",),
    "system-prompt": (),
    "anchor-logits": ("anchor",),
    "alignbeam": ("anchor", "judge"),
    "output-filter": ("judge",),
    "steerer": ("judge",),
}


@dataclass(frozen=True)
class ModelSpec:
    """A model, and how it is loaded.

    Attributes:
        name: A folder, a Hub id, `testbed:` and a name, or, of an anchor, `base`.
        revision: Of the Hub's repository.
        dtype: Of the weights, as torch names it; `auto` is the checkpoint's.
        device: As torch names it; `auto` spreads the model over what there is. None: where the target goes.
        tp_plan: `auto` cuts its layers up over the processes.
    """

    name: str
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    tp_plan: str | None = None

    def __post_init__(self) -> None:
        _check_types(self)


@dataclass(frozen=True)
class JudgeSpec:
    """A judge.

    Attributes:
        name: As of a model; `testbed:` has `oracle` and `graded` besides. Or an address of an OpenAI-compatible endpoint.
        revision, device: As of a model.
        template, rubric: As in `LLMJudge`.
        labels: As in `ClassifierJudge`.
        wrong: The share of the responses that it is made to be wrong about, the same ones each time.
    """

    name: str
    revision: str | None = None
    device: str | None = None
    template: str | None = None
    rubric: str | None = None
    labels: Mapping[str, float] | None = None
    wrong: float = 0.0

    def __post_init__(self) -> None:
        _check_types(self)
        if not 0.0 <= self.wrong <= 1.0:
            raise ValueError(f"`wrong` must be in [0, 1], got {self.wrong}.")


@dataclass(frozen=True)
class PromptSpec:
    """Prompts.

    Attributes:
        source: A file, `hub:` and the id of a data set, or `testbed:` and a kind of prompt.
        name: What the tables call it; by default the source's last part.
        limit: At most so many prompts.
        where: Only rows that have these values, by column.
        split, config, revision, options: Of a data set on the Hub, the last one whatever else `load_dataset` takes; of the
            testbed, the split.
        prompt, answer: The columns of the prompt and of its right answer, where the layout is none of those known.
        harmful: True, False, or a mapping with a `column` and the `values` that mean harm. By default, the layout's.
    """

    source: str
    name: str = ""
    limit: int | None = None
    where: Mapping[str, Any] | None = None
    split: str = "test"
    config: str | None = None
    revision: str | None = None
    options: Mapping[str, Any] | None = None
    prompt: str | None = None
    answer: str | None = None
    harmful: bool | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"`limit` must be at least 1, got {self.limit} for {self.source}. Leave it out to ask all prompts.")
        if isinstance(self.harmful, Mapping) and not (
            set(self.harmful) == {"column", "values"} and isinstance(self.harmful["values"], list)
        ):
            raise ValueError(f"`harmful` must be true, false or have a `column` and a list `values`, got {dict(self.harmful)}.")


@dataclass(frozen=True)
class SystemSpec:
    """Something that answers.

    Attributes:
        name: What the tables call it.
        system: Its kind.
        settings: What its class takes, by name.
        limit: At most so many prompts of each set.
        models: The targets that it is measured on; by default all.
        point: Of a system that is one of a sweep, the setting that is varied and its value.
        sweep: The name of that sweep.
    """

    name: str
    system: Kind
    settings: Mapping[str, Any]
    limit: int | None = None
    models: tuple[str, ...] = ()
    point: tuple[str, Any] | None = None
    sweep: str = ""

    def __post_init__(self) -> None:
        _check_types(self)
        if "|" in self.name:
            raise ValueError(f"`name` must hold no |, for it stands in a table, got {self.name!r}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"`limit` must be at least 1, got {self.limit} for {self.name!r}. Leave it out to ask all prompts.")


@dataclass(frozen=True)
class Recipe:
    """What is to be measured.

    Attributes:
        models: The targets, one table each.
        anchor, judge: Of the systems that need them.
        refusal_judge, harm_judge: Who says whether an answer refuses, and harms; by default nobody, and the `judge`.
        prompts, systems: What is asked, and who answers.
        about: One or two sentences for the head of the report.
        weights: The folder of the testbed's weights; None: the package's.
        refusal: The text of systems that refuse; None: theirs, on the testbed one of its language's.
        batch_size: Prompts in one call of `generate`. Answers may depend on it in their last bits, so it belongs to the recipe.
        max_new_tokens: Of an answer.
        temperature: Above 0, answers are sampled, each batch from a seed of its own, the same for all systems.
        seed: Of these, and of the systems that draw.
    """

    models: tuple[ModelSpec, ...]
    prompts: tuple[PromptSpec, ...]
    systems: tuple[SystemSpec, ...]
    anchor: ModelSpec | None = None
    judge: JudgeSpec | None = None
    refusal_judge: JudgeSpec | None = None
    harm_judge: JudgeSpec | None = None
    about: str = ""
    weights: str | None = None
    refusal: str | None = None
    batch_size: int = 16
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(self)
        for name, number in (("batch_size", self.batch_size), ("max_new_tokens", self.max_new_tokens)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}.")
        if self.temperature < 0.0:
            raise ValueError(f"`temperature` must be at least 0, got {self.temperature}. 0 is greedy search.")
        for name, found in (("models", self.models), ("prompts", self.prompts), ("systems", self.systems)):
            if not found:
                raise ValueError(f"`{name}` must name at least one, got none.")
        models = [model.name for model in self.models]
        named = {
            "model": models,
            "prompts": [prompts.name for prompts in self.prompts],
            "systems": [system.name for system in self.systems],
            "sweeps": [name for name, _ in {(s.sweep, s.point and s.point[0]) for s in self.systems if s.sweep}],
        }
        for what, names in named.items():
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"`{what}` must have names of their own, got {name!r} twice. Give one another `name`.")
        if self.anchor is not None and self.anchor.tp_plan is not None:
            raise ValueError("`tp_plan` must be left out of the anchor, got it: it is the target that processes can share.")
        for system in self.systems:
            for model in system.models:
                if model not in models:
                    raise ValueError(f"`models` of the system {system.name!r} must be among {', '.join(models)}, got {model!r}.")
            for part in NEEDS[system.system]:
                if getattr(self, part) is None:
                    raise ValueError(f"`{part}` must be named for the system {system.name!r}, got none. Or leave that out.")


def read(source: str) -> dict[str, Any]:
    """The mapping in a YAML file, or in the package's recipe of that name.

    Raises:
        ValueError: There is no such recipe, or the file holds something else.
    """
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    path = RECIPES / f"{source}.yaml" if source in known else Path(source)
    if not path.is_file():
        raise ValueError(f"The recipe must be a YAML file or one of {', '.join(known)}, got {source!r}.")
    try:
        given = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe must be YAML, but {path} is not: {error}.") from error
    if not isinstance(given, dict):
        raise ValueError(f"The recipe must be a mapping with `model`, `prompts` and `systems`, got {given!r} from {path}.")
    return given


def parse(given: Mapping[str, Any]) -> Recipe:
    """A recipe of a mapping as YAML holds it: `model` (or a list of them), `prompts`, `systems`, and the fields of `Recipe`.

    A model, a judge or a prompt set may be its name alone, a system its kind. A system is a mapping with `system`, its kind,
    perhaps `name`, `limit`, `models` and `sweep` (by the name of a setting, its values), and its settings.

    Raises:
        ValueError: Something is missing, unknown or out of its range; it is named.
    """
    known = {field.name for field in fields(Recipe)} - {"models"} | {"model"}
    _check_keys("The recipe", given, known)
    made: dict[str, Any] = {name: value for name, value in given.items() if name != "model"}
    made["models"] = tuple(_spec(ModelSpec, "model", one) for one in several(given.get("model")))
    made["prompts"] = tuple(_prompts(one) for one in several(given.get("prompts")))
    made["systems"] = tuple(system for one in several(given.get("systems")) for system in _systems(one))
    for name in ("judge", "refusal_judge", "harm_judge"):
        made[name] = _spec(JudgeSpec, name, given[name]) if given.get(name) else None
    made["anchor"] = _spec(ModelSpec, "anchor", given["anchor"]) if given.get("anchor") else None
    return Recipe(**made)


def several(given: Any) -> list[Any]:
    """One thing or a list of them, as a list."""
    return given if isinstance(given, list) else [] if given is None else [given]


def _prompts(given: Any) -> PromptSpec:
    spec = _spec(PromptSpec, "prompts", given, first="source")
    return replace(spec, name=spec.name or Path(spec.source.rpartition(":")[2]).name.split(".")[0])


def _systems(given: Any) -> list[SystemSpec]:
    """The system of one entry, or those of its sweep."""
    told: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"system": given}
    kind = told.pop("system", None)
    if kind not in get_args(Kind):
        raise ValueError(f"`system` must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    name, limit, sweep = told.pop("name", kind), told.pop("limit", None), told.pop("sweep", None)
    models = tuple(several(told.pop("models", None)))
    system = SystemSpec(name, kind, told, limit, models)
    if sweep is None:
        return [system]
    if not isinstance(sweep, Mapping) or len(sweep) != 1 or not (values := several(next(iter(sweep.values())))):
        raise ValueError(f"`sweep` must name one setting and list its values, got {sweep!r} for {name!r}.")
    setting = str(next(iter(sweep)))
    return [
        replace(system, name=f"{name}, {setting} {value}", settings={**told, setting: value}, point=(setting, value), sweep=name)
        for value in values
    ]


def _spec(cls: type[Spec], what: str, given: Any, first: str = "name") -> Spec:
    if not isinstance(given, Mapping):
        return cls(**{first: str(given)})
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    _check_keys(f"`{what}`", given, names)
    if first not in given:
        raise ValueError(f"`{what}` must have a `{first}`, got {dict(given)!r}.")
    return cls(**given)


def _check_types(spec: Any) -> None:
    """Raise ValueError where a field of a dataclass holds something else than it says."""
    for name, hint in get_type_hints(type(spec)).items():
        if not _fits(value := getattr(spec, name), hint):
            allowed = str(hint if get_origin(hint) else hint.__name__).replace("typing.", "").replace("collections.abc.", "")
            raise ValueError(f"`{name}` must be {allowed}, got {value!r}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, origin or hint)


def _check_keys(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{what} must have no keys but {', '.join(sorted(known))}, got {key!r}.")
