"""The laws of the package on a device and in a dtype, checked with the testbed's trained models.

Knows what has to be equal, and counts the cases where it is. Knows no shape and no time, and prints nothing.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from hf_alignbeam.benchmarks.invariants import MODES, anchor_distance, outputs
from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.embedding_search.steerer import EmbeddingSteerer
from hf_alignbeam.evaluation.generation import Responder, encode
from hf_alignbeam.inference.branching_cache import COARSE_ROUNDING, ROUNDING
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.classifier_judge import ClassifierJudge
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.judges.plausibility import PlausibleAnswer
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.language import Language
from hf_alignbeam.testbed.model_store import load, stored_language

#: By name, what `generate` is given where a strategy decodes. Compiling a static cache's forward would take minutes.
STRATEGY_MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.2},
    "3 sequences": {"do_sample": True, "num_return_sequences": 3},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}
N_PROMPTS = 8
N_NEW_TOKENS = 48


@dataclass(frozen=True)
class LawResult:
    """In how many cases a law held.

    Attributes:
        law: What has to hold.
        mode: The mode of `generate`, or the kind of prompts.
        n_held: Cases in which it held: rows of a batch, or answers.
        n_cases: All cases.
        distance: Where a law compares distributions, the largest total variation.
    """

    law: str
    mode: str
    n_held: int
    n_cases: int
    distance: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the law held in every case."""
        return self.n_held == self.n_cases > 0


@dataclass(frozen=True)
class LoadedTestbed:
    """The testbed's models on one device, in one dtype."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anchor: PreTrainedModel
    anchor_tokenizer: PreTrainedTokenizerBase
    thin: PreTrainedModel
    thin_tokenizer: PreTrainedTokenizerBase
    judge: Judge
    classifier: Judge
    language: Language

    def prompts(self, kind: str, n: int = N_PROMPTS) -> list[list[Message]]:
        """The first n conversations of a kind, of the validation split."""
        return [prompt.conversation for prompt in self.language.prompts("validation", kind)[:n]]


def load_testbed(device: torch.device, dtype: torch.dtype) -> LoadedTestbed:
    """Load the models that the laws need."""

    def put(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
        model, tokenizer = load(name)
        return model.to(device=device, dtype=dtype), tokenizer  # type: ignore[call-arg]

    return LoadedTestbed(
        *put("specialist"),
        *put("anchor"),
        *put("thin"),
        LLMJudge(*put("judge-lm")),
        ClassifierJudge(*put("judge-cls"), labels={"unsafe": 1.0}),
        stored_language(),
    )


def check_laws(device: torch.device, dtype: torch.dtype) -> Iterator[LawResult]:
    """Check every law. Laws that raise an error do not hold, and leave the others their run.

    Args:
        device: Where all models go.
        dtype: Of their weights.
    """
    testbed = load_testbed(device, dtype)
    for laws in (processor_laws, strategy_laws, search_laws):
        try:
            yield from laws(testbed)
        except Exception as error:  # whatever fails on an untried device: time on a card is short
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{laws.__name__} ended with {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
            yield LawResult(message, "-", 0, 1)


def processor_laws(testbed: LoadedTestbed) -> Iterator[LawResult]:
    """The laws of `AnchorLogitsProcessor`, in every mode of `generate` that it supports."""
    target, tokenizer = testbed.target, testbed.tokenizer
    conversations = [*testbed.prompts("domain", 2), *testbed.prompts("harmful", 2)]
    off = AnchorLogitsProcessor(testbed.anchor, testbed.anchor_tokenizer, tokenizer, alpha=0.0)
    itself = AnchorLogitsProcessor(target, tokenizer, tokenizer, alpha=0.5, n_steps=None, n_watch=None)
    guard = AnchorLogitsProcessor(testbed.anchor, testbed.anchor_tokenizer, tokenizer, n_steps=None, n_watch=None)
    bound = ROUNDING if torch.finfo(testbed.anchor.dtype).bits >= 32 else COARSE_ROUNDING
    for mode in MODES:
        plain = outputs(target, tokenizer, conversations, mode)
        for case, processor in (("alpha = 0", off), ("the target as its own anchor", itself)):
            law = f"with {case}, the output is plain generate's"
            yield _equal_rows(law, mode, outputs(target, tokenizer, conversations, mode, processor), plain)
        distance = anchor_distance(
            guard,
            testbed.anchor,
            lambda p, mode=mode: outputs(target, tokenizer, conversations, mode, p),  # type: ignore[misc]
        )
        yield LawResult("the cached anchor is the anchor from scratch", mode, int(distance <= bound), 1, distance)


def strategy_laws(testbed: LoadedTestbed) -> Iterator[LawResult]:
    """The laws of `AlignBeam`, and what its answers are by the grammar."""
    tokenizer = testbed.tokenizer
    conversations = [c for kind in ("domain", "harmful", "late", "general") for c in testbed.prompts(kind, 2)]
    translator = AnchorLogitsProcessor(testbed.anchor, testbed.anchor_tokenizer, tokenizer).translator

    def strategy(judge: Judge, **settings: Any) -> AlignBeam:
        named = {"translation": translator, **settings}
        return AlignBeam(testbed.anchor, testbed.anchor_tokenizer, tokenizer, judge, **named)

    for mode, options in STRATEGY_MODES.items():
        plain = _generate(testbed, conversations, **options)
        passed = _generate(testbed, conversations, custom_generate=strategy(_passing), **options)
        yield _equal_rows("with a judge that passes everything, the output is plain generate's", mode, [passed], [plain])
        refused = _texts(testbed, conversations, custom_generate=strategy(_failing), **options)
        yield _count("with a judge that passes nothing, every answer is the refusal", mode, [text == REFUSAL for text in refused])
        judged = _generate(testbed, conversations, custom_generate=strategy(testbed.judge), record=True, **options)
        kept = (judged.chosen == 0).tolist()
        width = min(judged.sequences.shape[-1], plain.shape[-1])
        same = (judged.sequences[:, :width] == plain[:, :width]).all(-1).tolist()
        cases = [equal for equal, unflagged in zip(same, kept, strict=True) if unflagged]
        yield _count("an unflagged answer is plain beside flagged ones", mode, cases)
    yield _streamed(testbed, strategy)
    truth = GroundTruth(testbed.language)
    for kind in ("harmful", "late", "prefill"):
        texts = _texts(testbed, testbed.prompts(kind), custom_generate=strategy(testbed.judge))
        yield _count("no answer does harm, by the grammar", kind, [truth.harm(text) == 0.0 for text in texts])
    prompts = testbed.language.prompts("validation", "domain")[:N_PROMPTS]
    texts = _texts(testbed, testbed.prompts("domain"), custom_generate=strategy(testbed.judge))
    right = [truth.correct(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    yield _count("answers of the target's domain stay correct, by the grammar", "domain", right)


def search_laws(testbed: LoadedTestbed) -> Iterator[LawResult]:
    """The laws of `EmbeddingSteerer`."""
    model, tokenizer = testbed.thin, testbed.thin_tokenizer
    accept = PlausibleAnswer(testbed.anchor, testbed.anchor_tokenizer)
    framed = [p.conversation for p in testbed.language.prompts("validation", "harmful") if p.framing][:N_PROMPTS]
    conversations = [*framed, *testbed.prompts("general", 4)]
    options: dict[str, Any] = {"max_new_tokens": N_NEW_TOKENS, "do_sample": False}
    responder = Responder(model, tokenizer, N_NEW_TOKENS)
    still = EmbeddingSteerer(model, tokenizer, testbed.classifier, accept, mu=0.0).precompute(conversations, **options)
    plain = responder(conversations)
    yield _count(
        "noise of length 0 leaves the answer as it is",
        "precompute",
        [still[c].text == response.text for c, response in zip(conversations, plain, strict=True)],
    )
    found = EmbeddingSteerer(model, tokenizer, testbed.classifier, accept).precompute(conversations, **options)
    truth = GroundTruth(testbed.language)
    yield _count("a searched answer does no harm, by the grammar", "precompute", [truth.harm(p.text) == 0.0 for p in found])
    given = [c for c in conversations if found[c].outcome in ("clean", "steered")]
    for mode, batches in (("a batch", [given]), ("one by one", [[c] for c in given])):
        equal = []
        for batch in batches:
            inputs = found.inputs(batch)
            output = model.generate(**inputs, **options)  # type: ignore[operator]
            n_ids = [len(found[c].ids) for c in batch]
            equal += [row[:n].tolist() == found[c].ids for row, n, c in zip(output, n_ids, batch, strict=True)]
        yield _count("stored embeddings give the answers that were judged", mode, equal)


class _Collected(BaseStreamer):
    """What a streamer is given, the prompt first."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        """Keep some ids."""
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        """Note the end."""
        self.ended = True


def _streamed(testbed: LoadedTestbed, strategy: Callable[..., AlignBeam]) -> LawResult:
    held = []
    for kind in ("domain", "harmful", "late"):
        streamer, (conversation,) = _Collected(), testbed.prompts(kind, 1)
        output = _generate(testbed, [conversation], custom_generate=strategy(testbed.judge, streamer=streamer))
        held.append(streamer.ended and streamer.ids == output[0].tolist())
    return _count("streamed text is the text that is returned", "greedy", held)


@torch.no_grad()
def _generate(testbed: LoadedTestbed, conversations: Sequence[list[Message]], record: bool = False, **options: Any) -> Any:
    """Prompts and answers (B, length), or with `record` the whole output."""
    torch.manual_seed(0)
    target: Any = testbed.target
    inputs = encode(conversations, testbed.tokenizer).to(target.device)
    settings = {"max_new_tokens": N_NEW_TOKENS, "do_sample": False, "return_dict_in_generate": record, **options}
    return target.generate(**inputs, **settings)


def _texts(testbed: LoadedTestbed, conversations: Sequence[list[Message]], **options: Any) -> list[str]:
    """The answers as text, what the prompt holds of them included."""
    n_each = options.get("num_return_sequences", 1)
    repeated = [conversation for conversation in conversations for _ in range(n_each)]
    n_prompt = encode(conversations, testbed.tokenizer)["input_ids"].shape[-1]
    output = _generate(testbed, conversations, record=True, **options)
    return [response.text for response in Responder(testbed.target, testbed.tokenizer, 1).read(repeated, output, n_prompt)]


def _passing(conversations: Sequence[list[Message]], responses: Sequence[str]) -> Tensor:
    return torch.zeros(len(responses))


def _failing(conversations: Sequence[list[Message]], responses: Sequence[str]) -> Tensor:
    return torch.ones(len(responses))


def _count(law: str, mode: str, held: Sequence[bool]) -> LawResult:
    return LawResult(law, mode, sum(held), len(held))


def _equal_rows(law: str, mode: str, some: Sequence[Tensor], others: Sequence[Tensor]) -> LawResult:
    """How many rows are equal, token for token."""
    held: list[bool] = []
    for ours, theirs in zip(some, others, strict=True):
        width = max(ours.shape[-1], theirs.shape[-1])
        padded = [torch.nn.functional.pad(ids, (0, width - ids.shape[-1]), value=-1) for ids in (ours, theirs)]
        held += (padded[0] == padded[1]).all(-1).tolist()
    return _count(law, mode, held)
