"""What a Hub folder's `generate` does: plain arguments in, a guard or a strategy out, one function a strategy.

Knows `generate`'s arguments, and which of them are whose. How models are loaded and kept is `loading.py`'s business.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers import (
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from hf_alignbeam.chat.conversations import checked_conversations
from hf_alignbeam.chat.prompt_reader import Prompts
from hf_alignbeam.decoding.strategy import PAPER, AlignBeam
from hf_alignbeam.embedding_search.steerer import TSA, EmbeddingSteerer
from hf_alignbeam.hub.model_loading import frozen, kept, load_accept, load_anchor, load_judge, tokenizer_of
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.steering.processor import PRESETS, AnchorLogitsProcessor

#: The loader's own arguments, which `generate` hands on to whatever it loads.
LOADER = ("revision", "code_revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "trust_remote_code")
#: Where the generation config of a protected model names its anchor, its judge and their settings.
KEY = "alignbeam"
#: The tokenizers of models that are given loaded.
LOADED = ("anchor_tokenizer", "judge_tokenizer")
#: Arguments that say how a judge is read.
JUDGING = ("judge_revision", "judge_labels", "judge_template", "judge_tokenizer")
#: The same, and which anchor is meant.
NAMING = ("anchor_revision", "anchor_tokenizer", *JUDGING)
#: What a call of a protected model may still say: nothing that changes what passes.
OPEN_SETTINGS = ("conversations", "streamer")


@torch.no_grad()
def anchor_logits(*args: Any, model: PreTrainedModel, anchor: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
    """`generate` with an `AnchorLogitsProcessor`.

    Args:
        model: The target.
        anchor: The safe model: a Hub id, a folder, a loaded model (with `anchor_tokenizer`), or `"base"`.
        tokenizer: The target's; by default the one that lies beside it.
        args, kwargs: What `generate` takes; what `AnchorLogitsProcessor` takes, by name; `preset`, one of `PRESETS`;
            `anchor_revision`.
    """
    tokenizer = tokenizer_of(model, tokenizer)
    settings, rest = _divided(kwargs, AnchorLogitsProcessor)
    settings = {**_preset(rest.pop("preset", None), PRESETS), **settings}
    anchor_revision, anchor_tokenizer = rest.pop("anchor_revision", None), rest.pop("anchor_tokenizer", None)
    conversations = settings.pop("conversations", None)
    loaded = load_anchor(anchor, anchor_revision, model, tokenizer, anchor_tokenizer)

    def build() -> AnchorLogitsProcessor:
        return AnchorLogitsProcessor(*loaded, tokenizer, model=model if anchor == "base" else None, **settings)

    guard = kept(model, ("anchor_logits", *map(id, loaded), id(tokenizer), *frozen(settings)), build)
    if conversations is not None:
        guard = guard.with_conversations(conversations)
    rest["logits_processor"] = [*(rest.get("logits_processor") or []), guard]
    return _generated(model, args, rest, tokenizer)


@torch.no_grad()
def alignbeam(*args: Any, model: PreTrainedModel, anchor: Any, judge: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
    """`generate` with the `AlignBeam` strategy.

    Args:
        model: The target.
        anchor: The safe model: a Hub id, a folder, a loaded model (with `anchor_tokenizer`), or `"base"`.
        judge: A Hub id or a folder of a causal model or a sequence classifier, a loaded one (with `judge_tokenizer`), or any
            callable judge.
        tokenizer: The target's; by default the one that lies beside it.
        args, kwargs: What `generate` takes, its streamer too; what `AlignBeam` takes, by name; `preset="paper"`;
            `anchor_revision`, `judge_revision`, `judge_labels`, `judge_template`.
    """
    tokenizer = tokenizer_of(model, tokenizer)
    settings, rest = _divided(kwargs, AlignBeam)
    settings = {**_preset(rest.pop("preset", None), {"paper": PAPER}), **settings}
    settings |= {name: rest.pop(name) for name in NAMING if name in rest}
    open_settings = {name: settings.pop(name, None) for name in OPEN_SETTINGS}
    strategy = _strategy(model, anchor, judge, tokenizer, settings).for_call(**open_settings)
    return _generated(model, args, {**rest, "custom_generate": strategy}, tokenizer)


@torch.no_grad()
def embedding_steerer(
    inputs: Any = None, *, model: PreTrainedModel, judge: Any, accept: Any = None, tokenizer: Any = None, **kwargs: Any
) -> Any:
    """`generate` that searches embeddings for prompts whose answer a judge does not pass, with an `EmbeddingSteerer`.

    Args:
        inputs: (B, length) prompt ids; or `input_ids`, by name.
        model: The target.
        judge: As in `alignbeam`.
        accept: The safe model of a `PlausibleAnswer`: a Hub id, a folder, a loaded model (with `anchor_tokenizer`); or any
            callable. None: what the judge passes is given.
        tokenizer: The target's; by default the one that lies beside it.
        kwargs: What `generate` takes, its streamer too; what `EmbeddingSteerer` takes, by name; `preset="tsa"`;
            `conversations` and `template` as in `AnchorLogitsProcessor`; `accept_revision`, `judge_revision`, `judge_labels`,
            `judge_template`.
    """
    tokenizer = tokenizer_of(model, tokenizer)
    settings, rest = _divided(kwargs, EmbeddingSteerer)
    settings = {**_preset(rest.pop("preset", None), {"tsa": TSA}), **settings}
    named = {name: rest.pop(name, None) for name in (*JUDGING, "anchor_tokenizer", "accept_revision")}
    template, conversations = rest.pop("template", None), rest.pop("conversations", None)
    prompts = kept(tokenizer, ("prompts", *frozen({"template": template})), lambda: Prompts(tokenizer, template))
    ids = rest.pop("input_ids", None) if inputs is None else inputs
    if ids is None or rest.get("inputs_embeds") is not None:
        raise ValueError("`input_ids` must be given, for it is their embeddings that are searched, got none or `inputs_embeds`.")
    judging = _judge_named(judge, named, model)
    accepting = load_accept(accept, named["accept_revision"], model, named["anchor_tokenizer"])

    def build() -> EmbeddingSteerer:
        return EmbeddingSteerer(model, tokenizer, judging, accepting, **settings)

    key = ("embedding_steerer", id(judging), id(accepting), id(tokenizer), *frozen(settings))
    steerer = kept(model, key, build)
    asked, _ = prompts.asked(ids, checked_conversations(conversations))
    return steerer.respond(ids, asked, **{**rest, "stopping_criteria": _for_any_rows(rest.get("stopping_criteria"))})


def _strategy(model: PreTrainedModel, anchor: Any, judge: Any, tokenizer: Any, settings: Mapping[str, Any]) -> AlignBeam:
    """A strategy of plain arguments, built once."""
    named = {name: settings.get(name) for name in NAMING}
    settings = {name: value for name, value in settings.items() if name not in NAMING}
    loaded = load_anchor(anchor, named["anchor_revision"], model, tokenizer, named["anchor_tokenizer"])
    judging = _judge_named(judge, named, model)

    def build() -> AlignBeam:
        return AlignBeam(*loaded, tokenizer, judging, model=model if anchor == "base" else None, **settings)

    key = ("alignbeam", *map(id, loaded), id(judging), id(tokenizer), *frozen(settings))
    return cast(AlignBeam, kept(model, key, build))


def _judge_named(judge: Any, named: Mapping[str, Any], model: PreTrainedModel) -> Judge:
    labels, template = named["judge_labels"], named["judge_template"]
    return load_judge(judge, named["judge_revision"], labels, template, input_device(model), named["judge_tokenizer"])


class Guarded:
    """`generate` of a model that brings its own protection, settled once and for all when this is made.

    Args:
        model: The target; its generation config names anchor, judge and their settings under `KEY`.
        tokenizer: The target's; by default the one that lies beside it.

    Raises:
        ValueError: It names none, or something that there is not.
        OSError: They cannot be loaded.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any = None):
        self.model = model
        own = _protection_of(model)
        known = {"anchor", "judge", *NAMING, *_names(AlignBeam)} - {*OPEN_SETTINGS, *LOADED}
        if unknown := sorted(set(own) - known):
            raise ValueError(f"generation_config.json must hold settings of AlignBeam under {KEY!r}, got {', '.join(unknown)}.")
        self._tokenizer = tokenizer_of(model, tokenizer)
        self._named = own.pop("anchor"), own.pop("judge")
        self._settings = own
        _strategy(model, *self._named, self._tokenizer, own)  # what cannot be made is to be told now

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `generate`.

        Raises:
            ValueError: The call would change what passes, or what is judged.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        fixed = {"custom_generate", "model", "anchor", "judge", "preset", *NAMING, *_names(AlignBeam)} - {*OPEN_SETTINGS}
        if self._tokenizer.chat_template is not None and "inputs_embeds" not in kwargs:
            fixed.add("conversations")  # the prompt says itself what it asks
        for name in sorted(fixed & set(kwargs)):
            raise ValueError(
                f"`{name}` is settled by the model's own protection and must be left out, got {kwargs[name]!r}. It stands under "
                f"{KEY!r} in generation_config.json."
            )
        kwargs.pop("tokenizer", None)  # pipelines and servers hand one on: it is the model's own that counts
        anchor, judge = self._named
        settled = {"anchor": anchor, "judge": judge, "tokenizer": self._tokenizer, **self._settings}
        return alignbeam(*args, model=self.model, **settled, **kwargs)


def protected(*args: Any, model: PreTrainedModel, **kwargs: Any) -> Any:
    """`generate` of a model whose generation config names its own anchor and judge.

    Raises:
        ValueError: It names none, or the call would change what passes.
    """
    return Guarded(model)(*args, **kwargs)


def _protection_of(model: PreTrainedModel) -> dict[str, Any]:
    own = getattr(model.generation_config, KEY, None)
    if not isinstance(own, dict) or not {"anchor", "judge"} <= own.keys():
        raise ValueError(f"generation_config.json must name anchor and judge under {KEY!r}, got {own!r}.")
    return copy.deepcopy(own)


def _names(made: type) -> set[str]:
    """The settings that a guard or a strategy takes, its models aside."""
    return set(inspect.signature(made).parameters) - {"anchor", "anchor_tokenizer", "tokenizer", "judge", "accept", "model"}


def _divided(kwargs: Mapping[str, Any], made: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of what is to be made, and what `generate` gets."""
    names = _names(made)
    settings = {name: value for name, value in kwargs.items() if name in names and value is not None}
    rest = {name: value for name, value in kwargs.items() if name not in names and name not in LOADER}
    return settings, rest


def _preset(name: str | None, known: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if name is not None and name not in known:
        raise ValueError(f"`preset` must be {', '.join(map(repr, known))} or left out, got {name!r}.")
    return dict(known[name]) if name else {}


class _ForAnyRows(StoppingCriteria):
    """A criterion that keeps its verdicts in `done_tracker`, one for each row of the batch it was made for, asked about any rows.

    Each time it begins with a new list: an answer has several rows while candidates are tried, and what a row said may be taken
    back.
    """

    def __init__(self, criterion: Any):
        self._criterion = criterion

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Whether each row of `input_ids` (B, length) stops, (B,)."""
        criterion = copy.copy(self._criterion)
        criterion.done_tracker = [False] * len(input_ids)
        criterion(input_ids, scores, **kwargs)
        return torch.tensor(criterion.done_tracker, device=input_ids.device)


def _for_any_rows(criteria: Sequence[Any] | None) -> StoppingCriteriaList:
    """A caller's criteria, fit for any rows: those of lm_eval (0.4.13) know only the rows of its own batch."""
    return StoppingCriteriaList(
        [_ForAnyRows(each) if isinstance(getattr(each, "done_tracker", None), list) else each for each in criteria or []]
    )


def _generated(model: PreTrainedModel, args: Sequence[Any], kwargs: dict[str, Any], tokenizer: Any) -> Any:
    """`generate` as the model's class has it, stop strings turned into a criterion."""
    if kwargs.get("cache_implementation") == "paged":
        raise ValueError('`cache_implementation="paged"` leaves guards out inside transformers, and must not be used, got it.')
    config = kwargs.get("generation_config")
    stop_strings = kwargs.pop("stop_strings", None) or getattr(config, "stop_strings", None)
    if "custom_generate" in kwargs:
        kwargs["stopping_criteria"] = criteria = _for_any_rows(kwargs.get("stopping_criteria"))
        if stop_strings:  # for which `generate` gives a strategy no tokenizer (transformers 5.23)
            criteria.append(StopStringCriteria(tokenizer, stop_strings))
            kwargs["stop_strings"] = None
    elif stop_strings:
        kwargs |= {"stop_strings": stop_strings, "tokenizer": tokenizer}
    target: Any = type(model)
    return target.generate(model, *args, **kwargs)
