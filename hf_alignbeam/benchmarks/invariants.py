"""What has to hold in every mode of `generate`, checked on any pair of models: the numbers behind the families' matrix.

Knows the modes and the laws. Knows no family and no figure that is good enough.
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

from hf_alignbeam.anchor.follower import Follower
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.steering.processor import AnchorLogitsProcessor

Conversation = list[dict[str, str]]

#: By name, what `generate` is given. One prompt where tokens are looked up, for transformers takes no more there.
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
    """What each call of a mode gives, prompts included: two calls where an object is used again, one elsewhere."""
    asked = list(conversations)[: 1 if mode in ("prompt lookup", "turns") else None]
    found = [_generate(model, tokenizer, asked, mode, processor)]
    if mode == "reuse":
        found.append(_generate(model, tokenizer, asked[::-1], mode, processor))
    if mode == "turns":
        later = [*asked[0], {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And then?"}]
        found.append(_generate(model, tokenizer, [later], mode, processor))
    return found


@torch.no_grad()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[Conversation],
    mode: str,
    processor: LogitsProcessor | None,
) -> Tensor:
    torch.manual_seed(0)
    return model.generate(  # type: ignore[operator]
        **encode(asked, tokenizer).to(model.device),
        logits_processor=[processor] if processor is not None else [],
        max_new_tokens=N_NEW_TOKENS,
        **{"do_sample": False, **MODES[mode]},
    )


class Checked(LogitsProcessor):
    """A processor, and beside it at every call the worst distance of what it holds to what a model says from scratch."""

    def __init__(self, processor: LogitsProcessor, held: Callable[[Tensor, Tensor, Tensor], Iterator[tuple[list[int], Tensor]]]):
        self._processor = processor
        self._held = held
        self.pairs: list[tuple[list[int], Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As the processor's own."""
        result = self._processor(input_ids, scores)
        self.pairs += self._held(input_ids, scores, result)
        return result

    def worst(self, model: PreTrainedModel) -> float:
        """The largest difference of a log-probability to that of the whole context read without any cache."""
        return max((float((logp - scratch).abs().max()) for logp, scratch in self._beside(model)), default=0.0)

    def largest_distance(self, model: PreTrainedModel) -> float:
        """The largest total variation between the two."""
        return max((float((logp.exp() - scratch.exp()).abs().sum()) / 2 for logp, scratch in self._beside(model)), default=0.0)

    @torch.no_grad()
    def _beside(self, model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
        """What the processor held and what the model says from scratch, as log-probabilities (A,)."""
        scratch: dict[tuple[int, ...], Tensor] = {}
        for ids, logp in self.pairs:
            if tuple(ids) not in scratch:
                logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
                scratch[tuple(ids)] = logits.float().log_softmax(-1)
            yield logp, scratch[tuple(ids)]


def cache_error(guard: AnchorLogitsProcessor, anchor: PreTrainedModel, run: Callable[[LogitsProcessor], object]) -> float:
    """How far the anchor in a guard is from the anchor from scratch: the largest difference of a log-probability in a run."""
    return _checked(guard, run).worst(anchor)


def anchor_distance(guard: AnchorLogitsProcessor, anchor: PreTrainedModel, run: Callable[[LogitsProcessor], object]) -> float:
    """The same as the largest total variation, for dtypes whose rounding moves unlikely tokens far."""
    return _checked(guard, run).largest_distance(anchor)


def _checked(guard: AnchorLogitsProcessor, run: Callable[[LogitsProcessor], object]) -> Checked:
    """A run in which every point of the anchor is noted at every call."""

    def held(*_: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        follower = guard.follower
        return _points(follower) if follower is not None else iter(())

    checked = Checked(guard, held)
    run(checked)
    return checked


def _points(follower: Follower) -> Iterator[tuple[list[int], Tensor]]:
    for number, row in enumerate(follower.rows):
        for path, node in row.nodes.items():
            yield follower.cache.context(number, row.slots(path)), node.logp


def guidance_error(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> float:
    """The same for transformers' classifier-free guidance under beams, whose second model's cache follows row numbers."""
    n_beams, n_prompts = MODES["4 beams"]["num_beams"], len(conversations)
    start = encode(list(conversations), tokenizer)["input_ids"].shape[1]
    prompt = torch.full((n_prompts * n_beams, 1), tokenizer.eos_token_id)
    guide = UnbatchedClassifierFreeGuidanceLogitsProcessor(GUIDANCE, model, unconditional_ids=cast(torch.LongTensor, prompt))

    def held(input_ids: Tensor, scores: Tensor, result: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        unconditional = (GUIDANCE * scores.log_softmax(-1) - result) / (GUIDANCE - 1.0)
        written = torch.cat([prompt, input_ids[:, start:]], dim=-1)
        return zip(written.tolist(), unconditional, strict=True)

    checked = Checked(guide, held)
    outputs(model, tokenizer, conversations, "4 beams", checked)
    return checked.worst(model)


def anchor_equal_to_target_is_plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], mode: str
) -> bool:
    """Whether a target with itself as anchor gives what it gives alone, token for token."""
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
    """Whether a target gives its anchor's tokens where the anchor's share is all, on one vocabulary."""
    guard = AnchorLogitsProcessor(anchor, tokenizer, tokenizer, alpha=1.0, n_steps=None, n_watch=None)
    return _equal(
        outputs(model, tokenizer, conversations, mode, guard),
        outputs(anchor, tokenizer, conversations, mode),
    )


def supports(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], mode: str
) -> bool:
    """Whether transformers itself runs a model in a mode (it looks up no tokens for recurrent models)."""
    with suppress(ValueError):
        outputs(model, tokenizer, conversations, mode)
        return True
    return False


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
