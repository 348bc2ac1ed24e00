"""A recipe: which models, systems and prompt sets to measure. Read from YAML and checked.

Knows names and settings. Loads no model, reads no prompt.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from hf_alignbeam.evaluation.devices import check_named_judge
from hf_alignbeam.evaluation.files.local_copies import local_model
from hf_alignbeam.evaluation.files.prompt_source import STRICT, TESTBED, Positive, PromptSpec
from hf_alignbeam.evaluation.files.text import read_text
from hf_alignbeam.evaluation.files.values import parse_yaml
from hf_alignbeam.hub.judge_loading import JudgeSettings

RECIPES = Path(__file__).parent / "recipes"

Spec = TypeVar("Spec")
Share = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["plain", "anchor", "system-prompt", "anchor-logits", "alignbeam", "output-filter", "steerer"]
#: The models that each kind of system needs besides the target.
REQUIRED_MODELS: dict[Kind, tuple[str, ...]] = {
    "plain": (),
    "anchor": ("anchor",),
    "system-prompt": (),
    "anchor-logits": ("anchor",),
    "alignbeam": ("anchor", "judge"),
    "output-filter": ("judge",),
    "steerer": ("judge",),
}
#: What to do about a value that is out of its range, by the name of the field.
ADVICE = {
    "limit": "Leave it out to use all prompts.",
    "temperature": "0 is greedy search.",
    "wrong": "Leave it out for a judge without added errors.",
    "threshold": "`alignbeam calibrate` finds one.",
}


@dataclass(frozen=True, config=STRICT)
class ModelSpec:
    """A model, and how it is loaded.

    Attributes:
        name: A folder, a Hub id, `testbed:` and a name, or, for an anchor, `base`.
        revision: The revision of the Hub repository.
        dtype: The dtype of the weights, as torch names it; `auto` is the checkpoint's.
        folder: Its folder in that of `HF_ALIGNBEAM_MODELS`, from which it is loaded where the variable is set.
        device: A device as torch names it; `auto` spreads the model over all devices. None: the target's device.
        tp_plan: `auto` splits the layers over the processes (tensor parallelism).
    """

    name: str
    revision: str | None = None
    folder: str | None = None
    dtype: str = "auto"
    device: str | None = None
    tp_plan: str | None = None

    @property
    def source(self) -> str:
        """What is loaded: the local folder, or what the name says."""
        return local_model(self.folder) or self.name


@dataclass(frozen=True, config=STRICT)
class JudgeSpec:
    """A judge.

    Attributes:
        name: As for a model; the testbed also has `oracle` and `graded`. Or the URL of an OpenAI-compatible endpoint.
        revision, folder, device: As for a model.
        profile, rubric, template, labels, threshold: As in `JudgeSettings`.
        api, model: For a URL, the kind of endpoint and the model's name there, as in `judge_from_url`.
        wrong: The share of responses whose verdict is inverted, the same responses in every run.
    """

    name: str
    revision: str | None = None
    folder: str | None = None
    device: str | None = None
    profile: str | Mapping[str, Any] | None = None
    rubric: str | None = None
    template: str | None = None
    labels: Mapping[str, Share] | None = None
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    api: str | None = None
    model: str | None = None
    wrong: Share = 0.0

    def __post_init__(self) -> None:
        if not self.name.startswith(TESTBED):
            check_named_judge(self.name, self.settings, self.api, self.model)
            return
        self.settings.resolved()  # raises for a profile or a rubric that does not exist
        for name in ("revision", "api", "model"):
            if getattr(self, name) is not None:
                raise ValueError(f"`judge_{name}` must be left out for {self.name}, got {getattr(self, name)!r}.")

    @property
    def source(self) -> str:
        """As `ModelSpec.source`."""
        return local_model(self.folder) or self.name

    @property
    def settings(self) -> JudgeSettings:
        """What is said of the judge beside its name."""
        return JudgeSettings(self.profile, self.rubric, self.template, self.labels, self.threshold, self.revision)


@dataclass(frozen=True, config=STRICT)
class SystemSpec:
    """A system that answers prompts.

    Attributes:
        name: The name in the tables.
        system: The kind of system.
        settings: The arguments of its class, by name.
        limit: The largest number of prompts from each set.
        models: The targets that it is measured on; by default all.
        point: For a system of a sweep, the setting that varies and its value.
        sweep: The name of that sweep.
    """

    name: str
    system: Kind
    settings: Mapping[str, Any]
    limit: Positive | None = None
    models: tuple[str, ...] = ()
    point: tuple[str, Any] | None = None
    sweep: str = ""

    def __post_init__(self) -> None:
        if "|" in self.name:
            raise ValueError(f"`name` must hold no |, which separates the columns of a table, got {self.name!r}.")


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """Models, prompts and systems to measure.

    Attributes:
        models: The targets, one table each.
        anchor, judge: For the systems that need them.
        refusal_judge, harm_judge: The judges that score refusals and harm; by default none, and `judge`.
        score_harm: Whether harm is scored. It costs a verdict on every answer.
        prompts, systems: The prompts, and the systems that answer them.
        about: One or two sentences for the head of the report.
        weights: The folder of the testbed's weights; None: the package's.
        refusal: The refusal text of all systems; None: their default, on the testbed a refusal of its language.
        batch_size: Prompts in one call of `generate`. Answers may depend on it in their last bits, so it belongs to the recipe.
        max_new_tokens: The largest number of tokens in an answer.
        temperature: Above 0, answers are sampled. Each batch has a seed of its own, the same for all systems.
        seed: The seed of sampling, and of the systems that draw random numbers.
    """

    models: Annotated[tuple[ModelSpec, ...], Field(alias="model")]
    prompts: tuple[PromptSpec, ...]
    systems: tuple[SystemSpec, ...]
    anchor: ModelSpec | None = None
    judge: JudgeSpec | None = None
    refusal_judge: JudgeSpec | None = None
    harm_judge: JudgeSpec | None = None
    score_harm: bool = True
    about: str = ""
    weights: str | None = None
    refusal: str | None = None
    batch_size: Positive = 16
    max_new_tokens: Positive = 256
    temperature: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, specs in (("models", self.models), ("prompts", self.prompts), ("systems", self.systems)):
            if not specs:
                raise ValueError(f"`{name}` must name at least one, got none.")
        self._check_unique_names()
        if self.anchor is not None and self.anchor.tp_plan is not None:
            raise ValueError("`tp_plan` must be left out of the anchor: only the target can be split over processes.")
        targets = [model.name for model in self.models]
        for system in self.systems:
            for model in system.models:
                if model not in targets:
                    raise ValueError(f"`models` of the system {system.name!r} must be among {', '.join(targets)}, got {model!r}.")
            for required in REQUIRED_MODELS[system.system]:
                if getattr(self, required) is None:
                    raise ValueError(
                        f"`{required}` must be named for the system {system.name!r}, got none. Or leave that system out."
                    )

    def _check_unique_names(self) -> None:
        sweeps = {(system.sweep, system.point and system.point[0]) for system in self.systems if system.sweep}
        named = {
            "model": [model.name for model in self.models],
            "prompts": [prompts.name for prompts in self.prompts],
            "systems": [system.name for system in self.systems],
            "sweeps": [name for name, _ in sweeps],
        }
        for key, names in named.items():
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"`{key}` must have distinct names, got {name!r} twice. Give one of them another `name`.")


def read_recipe(source: str) -> dict[str, Any]:
    """Read the mapping in a YAML file, or in the package's recipe of that name.

    Raises:
        ValueError: There is no such recipe, or the file holds something else.
    """
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    path = RECIPES / f"{source}.yaml" if source in known else Path(source)
    if not path.is_file():
        raise ValueError(f"The recipe must be a YAML file or one of {', '.join(known)}, got {source!r}.")
    given = parse_yaml(read_text(path), f"The recipe {path}")
    if not isinstance(given, dict):
        raise ValueError(f"The recipe must be a mapping with `model`, `prompts` and `systems`, got {given!r} from {path}.")
    return given


def parse_recipe(given: Mapping[str, Any]) -> Recipe:
    """Check a mapping as YAML holds it: `model` (or a list of models), `prompts`, `systems`, and the other fields of `Recipe`.

    The name alone is enough for a model, a judge or a prompt set, and the kind for a system. A system is a mapping with its kind
    as `system`, optionally `name`, `limit`, `models` and `sweep` (the name of one setting, and its values), and its settings.

    Raises:
        ValueError: A key is missing or unknown, or a value is out of its range; the message names it.
    """
    fields = dict(given)
    fields["model"] = tuple(_checked(ModelSpec, place, one) for place, one in _entries(given, "model"))
    fields["prompts"] = tuple(_prompt_spec(place, one) for place, one in _entries(given, "prompts"))
    fields["systems"] = tuple(system for place, one in _entries(given, "systems") for system in _system_specs(place, one))
    for name in ("judge", "refusal_judge", "harm_judge"):
        fields[name] = _checked(JudgeSpec, f"`{name}`", given[name]) if given.get(name) else None
    fields["anchor"] = _checked(ModelSpec, "`anchor`", given["anchor"]) if given.get("anchor") else None
    return _checked(Recipe, "The recipe", fields)


def as_list(given: Any) -> list[Any]:
    """A list as it is, None as an empty list, anything else as a list of one."""
    return given if isinstance(given, list) else [] if given is None else [given]


def _entries(given: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """The entries of a key that may hold one or a list, each with its place in the recipe."""
    value = given.get(key)
    return [(f"`{key}[{n}]`" if isinstance(value, list) else f"`{key}`", entry) for n, entry in enumerate(as_list(value))]


def _prompt_spec(place: str, given: Any) -> PromptSpec:
    spec = _checked(PromptSpec, place, given, shorthand="source")
    return replace(spec, name=spec.name or Path(spec.source.rpartition(":")[2]).name.split(".")[0])


def _system_specs(place: str, given: Any) -> list[SystemSpec]:
    """The system of one entry, or one system for each value of its sweep."""
    settings: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"system": given}
    kind = settings.pop("system", None)
    name, sweep = settings.pop("name", str(kind)), settings.pop("sweep", None)
    fields = {"name": name, "system": kind, "limit": settings.pop("limit", None)}
    fields["models"] = tuple(as_list(settings.pop("models", None)))
    system = _checked(SystemSpec, place, {**fields, "settings": settings})
    if sweep is None:
        return [system]
    if not isinstance(sweep, Mapping) or len(sweep) != 1 or not (values := as_list(next(iter(sweep.values())))):
        raise ValueError(f"`sweep` must name one setting and list its values, got {sweep!r} for {name!r}.")
    setting = str(next(iter(sweep)))
    return [
        replace(
            system, name=f"{name}, {setting} {value}", settings={**settings, setting: value}, point=(setting, value), sweep=name
        )
        for value in values
    ]


def _checked(spec: type[Spec], place: str, given: Any, shorthand: str = "name") -> Spec:
    """Build a record from a mapping, or from the value of one field alone; an error becomes one sentence about its place."""
    fields = given if isinstance(given, Mapping) else {shorthand: str(given)}
    try:
        return spec(**{str(name): value for name, value in fields.items()})
    except ValidationError as error:
        raise ValueError(_sentence(spec, place, error)) from error


def _sentence(spec: Any, place: str, error: ValidationError) -> str:
    """The first error of a record, as the field, the rule, the value and the way out."""
    errors = sorted(error.errors(), key=lambda one: one["type"] != "unexpected_keyword_argument")
    first, field = errors[0], next(iter(errors[0]["loc"]), "")
    if first["type"] == "value_error":
        return str(first["ctx"]["error"]) if spec is Recipe else f"{place}: {first['ctx']['error']}"
    if first["type"] == "unexpected_keyword_argument":
        known = sorted(info.alias or name for name, info in spec.__pydantic_fields__.items())
        return f"{place} must have no keys but {', '.join(known)}, got {field!r}."
    if first["type"] == "missing":
        return f"{place} must have a `{field}`, got none."
    rules = [one["msg"].removeprefix("Input should be ") for one in errors if one["loc"][:1] == (field,)]
    where = "" if spec is Recipe else f" of {place}"
    return f"`{field}`{where} must be {' or '.join(rules)}, got {first['input']!r}. {ADVICE.get(str(field), '')}".strip()
