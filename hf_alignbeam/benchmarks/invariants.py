"""Laws that hold in every mode of `generate`, and the distance of a cached anchor from one without a cache, for any models.

Knows the modes and the laws. Knows no family of models and no tolerance.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from hf_alignbeam.anchor.at_once import AgreeingTokens
from hf_alignbeam.anchor.follower import Follower
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.steering.processor import AnchorLogitsProcessor

Conversation = list[dict[str, str]]

#: The arguments of `generate` in each mode. Prompt lookup gets one prompt: transformers allows no larger batch there.
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "4 beams": {"num_beams": 4},
    "3 sequences": {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1},
    "reuse": {},
    "turns": {},
}
N_NEW_TOKENS = 8
GUIDANCE = 1.5


def outputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    mode: str,
    processor: LogitsProcessor | None = None,
) -> list[Tensor]:
    """The ids that each call of a mode returns, prompts included: "reuse" and "turns" call twice with the same processor."""
    batch = list(conversations)[: 1 if mode in ("prompt lookup", "turns") else None]
    results = [_generate(model, tokenizer, batch, mode, processor)]
    if mode == "reuse":
        results.append(_generate(model, tokenizer, batch[::-1], mode, processor))
    if mode == "turns":
        later = [*batch[0], {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And then?"}]
        results.append(_generate(model, tokenizer, [later], mode, processor))
    return results


@torch.no_grad()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: list[Conversation],
    mode: str,
    processor: LogitsProcessor | None,
) -> Tensor:
    torch.manual_seed(0)
    return model.generate(  # type: ignore[operator]
        **encode(batch, tokenizer).to(input_device(model)),
        logits_processor=[processor] if processor is not None else [],
        max_new_tokens=N_NEW_TOKENS,
        **{"do_sample": False, **MODES[mode]},
    )


class RecordingProcessor(LogitsProcessor):
    """Calls a processor, and records the contexts and log-probabilities that it has cached after every call.

    Args:
        processor: The processor.
        cached: Reads them from the processor, given its arguments and its result.
    """

    def __init__(
        self, processor: LogitsProcessor, cached: Callable[[Tensor, Tensor, Tensor], Iterator[tuple[list[int], Tensor]]]
    ):
        self._processor = processor
        self._cached = cached
        self.records: list[tuple[list[int], Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As the processor's own."""
        result = self._processor(input_ids, scores)
        self.records += self._cached(input_ids, scores, result)
        return result

    def worst(self, model: PreTrainedModel) -> float:
        """The largest difference between a recorded log-probability and that of the context read without a cache."""
        return max((float((logp - scratch).abs().max()) for logp, scratch in self._compared(model)), default=0.0)

    def largest_distance(self, model: PreTrainedModel) -> float:
        """The largest total variation between a recorded distribution and that of the context read without a cache."""
        return max((float((logp.exp() - scratch.exp()).abs().sum()) / 2 for logp, scratch in self._compared(model)), default=0.0)

    @torch.no_grad()
    def _compared(self, model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
        """Each recorded distribution and that of its context read without a cache, as log-probabilities (A,)."""
        scratch: dict[tuple[int, ...], Tensor] = {}
        for ids, logp in self.records:
            if tuple(ids) not in scratch:
                logits = model(input_ids=torch.tensor([ids], device=input_device(model)), use_cache=False).logits[0, -1]
                scratch[tuple(ids)] = logits.float().log_softmax(-1)
            yield logp, scratch[tuple(ids)]


def cache_error(guard: AnchorLogitsProcessor, anchor: PreTrainedModel, run: Callable[[LogitsProcessor], object]) -> float:
    """The largest difference of a log-probability, in a run, between a guard's cached anchor and the anchor without a cache."""
    return _recorded(guard, run).worst(anchor)


def anchor_distance(guard: AnchorLogitsProcessor, anchor: PreTrainedModel, run: Callable[[LogitsProcessor], object]) -> float:
    """The largest total variation between the two, for dtypes whose rounding moves unlikely tokens far."""
    return _recorded(guard, run).largest_distance(anchor)


def _recorded(guard: AnchorLogitsProcessor, run: Callable[[LogitsProcessor], object]) -> RecordingProcessor:
    """Run with a guard that records every node of its anchor at every call."""

    def cached(*_: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        follower = guard.follower
        return _nodes(follower) if follower is not None else iter(())

    recorder = RecordingProcessor(guard, cached)
    run(recorder)
    return recorder


def _nodes(follower: Follower) -> Iterator[tuple[list[int], Tensor]]:
    """The context and the log-probabilities of every node of which a follower holds the distribution."""
    ids, prompts = follower.cache._ids, follower.cache._prompt
    for number, row in enumerate(follower.rows):
        for path, node in row.nodes.items():
            if not isinstance(node.together, AgreeingTokens):
                yield [*ids[number][prompts[number]].tolist(), *ids[number, row.slots(path)].tolist()], node.prob.log()


def guidance_error(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> float:
    """The same error for transformers' classifier-free guidance under beams, which keeps its cache by row number."""
    n_beams, n_prompts = MODES["4 beams"]["num_beams"], len(conversations)
    start = encode(list(conversations), tokenizer)["input_ids"].shape[1]
    prompt = torch.full((n_prompts * n_beams, 1), tokenizer.eos_token_id)
    guide = UnbatchedClassifierFreeGuidanceLogitsProcessor(GUIDANCE, model, unconditional_ids=cast(torch.LongTensor, prompt))

    def cached(input_ids: Tensor, scores: Tensor, result: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        unconditional = (GUIDANCE * scores.log_softmax(-1) - result) / (GUIDANCE - 1.0)
        written = torch.cat([prompt, input_ids[:, start:]], dim=-1)
        return zip(written.tolist(), unconditional, strict=True)

    recorder = RecordingProcessor(guide, cached)
    outputs(model, tokenizer, conversations, "4 beams", recorder)
    return recorder.worst(model)


def anchor_equal_to_target_is_plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], mode: str
) -> bool:
    """Whether a target with itself as anchor gives the tokens that it gives unguarded."""
    guard = AnchorLogitsProcessor(model, tokenizer, tokenizer, alpha=0.5, n_steps=None, n_watch=None)
    guarded = outputs(model, tokenizer, conversations, mode, guard)
    return _equal(guarded, outputs(model, tokenizer, conversations, mode)) and guard.ledger.steered_tokens > 0


def alpha_one_is_the_anchor(
    model: PreTrainedModel,
    anchor: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    mode: str,
) -> bool:
    """Whether a target with `alpha=1` gives its anchor's tokens; both have the same vocabulary."""
    guard = AnchorLogitsProcessor(anchor, tokenizer, tokenizer, alpha=1.0, n_steps=None, n_watch=None)
    return _equal(
        outputs(model, tokenizer, conversations, mode, guard),
        outputs(anchor, tokenizer, conversations, mode),
    )


def supports(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], mode: str
) -> bool:
    """Whether transformers itself runs a model in a mode: prompt lookup, for one, it refuses for recurrent models."""
    with suppress(ValueError, RuntimeError):
        outputs(model, tokenizer, conversations, mode)
        return True
    return False


def _equal(results: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
