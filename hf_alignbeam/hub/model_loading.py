"""Models by their ids, and what is built of them: loaded once, kept for the life of the process.

Knows ids, folders and `from_pretrained`. Knows no argument of `generate`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from huggingface_hub.errors import HTTPError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.classifier_judge import ClassifierJudge
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.judges.plausibility import PlausibleAnswer

#: Names by which classifiers call what must not leave.
HARMFUL_LABELS = ("unsafe", "harmful", "toxic", "toxicity", "hate", "hateful", "offensive")
#: How many guards, strategies and judges are kept; the one that was not needed for longest goes first.
N_KEPT = 16

_loaded: dict[tuple[object, ...], Any] = {}
_built: OrderedDict[tuple[object, ...], tuple[object, Any]] = OrderedDict()
_lock = threading.RLock()


def load_anchor(
    anchor: Any, revision: str | None, model: PreTrainedModel, tokenizer: Any, anchor_tokenizer: Any = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """An anchor and its tokenizer: loaded once by its id or folder, to where the target is; else as it was given."""
    if isinstance(anchor, str) and anchor == "base":
        return anchor, tokenizer
    if not isinstance(anchor, str):
        if anchor_tokenizer is None:
            raise ValueError("`anchor_tokenizer` must be given with a loaded anchor, got None. Or name the anchor by its id.")
        return anchor, anchor_tokenizer
    return _load(AutoModelForCausalLM, anchor, revision, input_device(model))


def load_accept(accept: Any, revision: str | None, model: PreTrainedModel, anchor_tokenizer: Any = None) -> Any:
    """What says which answers may be given: a `PlausibleAnswer` of a safe model, or what was given."""
    if accept is None or not isinstance(accept, str | PreTrainedModel):
        return accept
    if isinstance(accept, str):
        accept, anchor_tokenizer = _load(AutoModelForCausalLM, accept, revision, input_device(model))
    elif anchor_tokenizer is None:
        raise ValueError("`anchor_tokenizer` must be given with a loaded `accept`, got None. Or name it by its id.")
    return kept(accept, ("plausible", id(anchor_tokenizer)), lambda: PlausibleAnswer(accept, anchor_tokenizer))


def load_judge(
    judge: Any,
    revision: str | None = None,
    labels: Mapping[str, float] | None = None,
    template: str | None = None,
    device: torch.device | None = None,
    judge_tokenizer: Any = None,
) -> Judge:
    """A judge: loaded once by its id or folder, made of a loaded model, or itself where it is one already.

    Args:
        judge: A Hub id, a folder, a model or any callable of conversations and responses.
        revision: Of the Hub's repository.
        labels: Of a classifier, by name their harm; by default those called as in `HARMFUL_LABELS`.
        template: As in `LLMJudge` and `ClassifierJudge`.
        device: Where it goes.
        judge_tokenizer: Of a loaded model.
    """
    if isinstance(judge, str):
        with needed(judge):
            classifies = "SequenceClassification" in str(AutoConfig.from_pretrained(judge, revision=revision).architectures)
        auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
        network, judge_tokenizer = _load(auto, judge, revision, device or torch.device("cpu"))
    elif isinstance(judge, PreTrainedModel):
        network = judge
        if judge_tokenizer is None:
            raise ValueError("`judge_tokenizer` must be given with a loaded judge, got None. Or pass an LLMJudge.")
    else:
        return cast(Judge, judge)

    def build() -> Judge:
        if "SequenceClassification" not in type(network).__name__:
            return LLMJudge(network, judge_tokenizer, template or "guard")
        names = (network.config.id2label or {}).values()
        return ClassifierJudge(
            network, judge_tokenizer, labels or {n: 1.0 for n in names if n.lower() in HARMFUL_LABELS}, template
        )

    return cast(Judge, kept(network, ("judge", id(judge_tokenizer), template, *frozen(labels or {})), build))


def _load(auto: Any, name: str, revision: str | None, device: torch.device) -> tuple[Any, PreTrainedTokenizerBase]:
    key = (name, revision, str(device))
    with _lock:
        if key not in _loaded:
            with needed(name):
                network = auto.from_pretrained(name, revision=revision, dtype="auto").to(device).eval()
                _loaded[key] = network, AutoTokenizer.from_pretrained(name, revision=revision)
        return cast(tuple[Any, PreTrainedTokenizerBase], _loaded[key])


@contextmanager
def needed(name: str) -> Iterator[None]:
    """Say which model it is that cannot be loaded, and what to do: where the Hub does not answer, transformers 5.23 does not."""
    try:
        yield
    except (OSError, HTTPError) as error:  # the latter where a connection breaks
        raise OSError(
            f"{name} could not be loaded, and nothing is guarded without it: {error}\nSee that it is there, that the Hub can be "
            "reached, and that you may read it (`hf auth login` or HF_TOKEN)."
        ) from error


def tokenizer_of(model: PreTrainedModel, tokenizer: Any) -> Any:
    """The tokenizer that was given, or the one that lies beside the model."""
    if tokenizer is not None:
        return tokenizer
    name = model.config.name_or_path
    if not name:
        raise ValueError("`tokenizer` must be given for a model that was not loaded from anywhere, got None.")
    with _lock:
        key = ("tokenizer", name)
        if key not in _loaded:
            _loaded[key] = AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # None would ask at a terminal
        return _loaded[key]


def kept(owner: object, key: tuple[object, ...], build: Callable[[], Any]) -> Any:
    """What was built for an owner under a key, built now if it was not; both are kept alive, so that no id is used twice."""
    key = (id(owner), *key)
    with _lock:
        if key not in _built:
            _built[key] = owner, build()
        _built.move_to_end(key)
        while len(_built) > N_KEPT:
            _built.popitem(last=False)
        return _built[key][1]


def frozen(settings: Mapping[str, Any]) -> Sequence[tuple[str, object]]:
    """Settings as a part of a key; what cannot be compared is told by what it is."""
    return [(name, value if value.__hash__ else id(value)) for name, value in sorted(settings.items())]
