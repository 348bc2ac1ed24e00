"""Checks of a target with its anchor, one check a function.

Knows models and tokenizers that are loaded. Knows no terminal.
"""

import time
from typing import Any

from hf_alignbeam.benchmarks.invariants import anchor_equal_to_target_is_plain
from hf_alignbeam.benchmarks.translation_loss import lost_shares
from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.cli.diagnosis.examined import QUESTIONS, CheckResult, ExaminedModel
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.inference.engines import input_device, max_positions
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.translation.translator import VocabularyTranslator

#: A translation that loses a larger share of the anchor's tokens than this has a noticeable effect.
MAX_LOST = 0.01


def same_dtype(target: ExaminedModel, anchor: ExaminedModel) -> CheckResult:
    """Whether both models compute in one dtype and on one device."""
    kinds = [(next(each.model.parameters()).dtype, input_device(each.model)) for each in (target, anchor)]
    summary = " and ".join(f"{str(dtype).removeprefix('torch.')} on {device}" for dtype, device in kinds)
    if kinds[0][0] != kinds[1][0]:
        return CheckResult("yellow", f"{summary}: dtypes differ. It works; load both with one `dtype=` to compare figures.")
    if kinds[0][1] != kinds[1][1]:
        return CheckResult("yellow", f"{summary}: distributions are copied between devices at every step.")
    return CheckResult("green", summary)


def translation(target: ExaminedModel, anchor: ExaminedModel) -> CheckResult:
    """How much of the anchor's vocabulary can be written in the target's."""
    shares = lost_shares(VocabularyTranslator(anchor.tokenizer, target.tokenizer))
    lost, shared = shares["bytes"], 1.0 - shares["exact"]
    text = f"{100 * shared:.0f} % of the anchor's tokens are in the target's vocabulary, {100 * lost:.3f} % cannot be written"
    return CheckResult("yellow" if lost > MAX_LOST else "green", text)


def guard(target: ExaminedModel, anchor: ExaminedModel) -> CheckResult:
    """Whether a guard can be built, and steers an answer."""
    processor = AnchorLogitsProcessor(anchor.model, anchor.tokenizer, target.tokenizer)
    conversations: list[list[Message]] = [[{"role": "user", "content": QUESTIONS[0]}]]
    inputs = encode(conversations, target.tokenizer).to(input_device(target.model))
    processor = processor.with_conversations(conversations)
    target.model.generate(**inputs, logits_processor=[processor], max_new_tokens=4, do_sample=False)  # type: ignore[operator]
    ledger = processor.ledger
    if not ledger.steered_tokens:
        return CheckResult("red", "a guard was built, but no token was steered.")
    return CheckResult("green", f"{ledger.steered_tokens} tokens steered by {ledger.anchor_forwards} forwards of the anchor")


def overhead(target: ExaminedModel, anchor: ExaminedModel) -> CheckResult:
    """How long a forward of the anchor takes compared with the target's."""
    seconds = [_forward_seconds(each) for each in (target, anchor)]
    sizes = [sum(weight.numel() for weight in each.model.parameters()) / 1e6 for each in (target, anchor)]
    share = seconds[1] / seconds[0]
    text = f"a forward of the anchor ({sizes[1]:,.1f} M weights) takes {share:.2f} of the target's ({sizes[0]:,.1f} M)"
    if sizes[1] > sizes[0]:
        return CheckResult("yellow", f"{text}: a smaller anchor would do. It runs in the first tokens of an answer only.")
    return CheckResult("green", text)


def target_as_anchor(target: ExaminedModel) -> CheckResult:
    """The law that a guard whose anchor is the target itself changes nothing."""
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    if target.tokenizer.chat_template is None:
        return CheckResult("yellow", "not tried: the target has no chat template.")
    if not anchor_equal_to_target_is_plain(target.model, target.tokenizer, conversations, "greedy"):
        return CheckResult("red", "the guard with the target itself as anchor changed its answer. Please report these models.")
    return CheckResult("green", "token for token")


def batches(target: ExaminedModel, anchor: ExaminedModel) -> CheckResult:
    """The law that prompts in one batch get the same answers as one by one, guarded and plain."""
    conversations: list[list[Message]] = [[{"role": "user", "content": question}] for question in QUESTIONS]
    processor = AnchorLogitsProcessor(anchor.model, anchor.tokenizer, target.tokenizer)

    def answers(batch: list[list[Message]], guarded: bool) -> list[list[int]]:
        inputs = encode(batch, target.tokenizer).to(input_device(target.model))
        processors = [processor.with_conversations(batch)] if guarded else []
        kwargs: dict[str, Any] = {"logits_processor": processors, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        output = target.model.generate(**inputs, **kwargs)  # type: ignore[operator]
        return [row.tolist() for row in output[:, inputs["input_ids"].shape[1] :]]

    differing = [
        guarded
        for guarded in (False, True)
        if answers(conversations, guarded) != [answers([conversation], guarded)[0] for conversation in conversations]
    ]
    if False in differing:
        text = "plain `generate` itself answers a left-padded batch differently than one by one (rounding, or padding)."
        return CheckResult("yellow", text)
    if differing:
        return CheckResult("red", "guarded answers differ between a batch and one by one. Please report these models.")
    return CheckResult("green", "token for token, guarded and plain")


def _forward_seconds(examined: ExaminedModel) -> float:
    """The shortest of three forwards over a plain question."""
    ids = examined.encode(QUESTIONS[2])[: max_positions(examined.model) or None]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        examined.logits(ids)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
