"""A target's plain and its guarded answer to one prompt: the text as it comes, and at the end what it took.

Knows models and text. Knows no page: `panels.py` makes HTML of what is said here, `app.py` lays it out.
"""

import codecs
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from hf_alignbeam import AlignBeam, VocabularyTranslator, token_bytes
from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.cli.explain import Explanation, watch
from hf_alignbeam.evaluation.devices import load_causal
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.evaluation.scorers import refuses
from hf_alignbeam.hub.judge_loading import load_judge
from hf_alignbeam.inference.engines import input_device, max_positions
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.steering.ledger import Ledger

MAX_NEW_TOKENS = 256
#: Some text, and how far steering moved it in nats; None where it was not steered.
Run = tuple[str, float | None]


@dataclass(frozen=True)
class Models:
    """What is loaded once and shared by all who ask: `pieces` are the bytes of the target's tokens, `refuses` tells refusals."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anchor: PreTrainedModel
    anchor_tokenizer: PreTrainedTokenizerBase
    judge: Judge
    translator: VocabularyTranslator
    pieces: Sequence[bytes | None]
    refuses: Callable[[str], bool]


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        begun: Its start, where the prompt held one.
        runs: What follows so far; of a guarded answer, what the judge let pass.
        refused: Whether it refuses. This and what follows is None until the answer is finished.
        cost: What it took.
        explanation: Of a guarded answer, how it came about.
    """

    begun: str
    runs: Sequence[Run] = ()
    refused: bool | None = None
    cost: Ledger | None = None
    explanation: Explanation | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return (self.begun + "".join(text for text, _ in self.runs)).strip()


class Relay(BaseStreamer):
    """Hands ids from the thread that writes them to the one that reads."""

    def __init__(self) -> None:
        self._ids: SimpleQueue[list[int] | None] = SimpleQueue()

    def put(self, value: torch.Tensor) -> None:
        self._ids.put(value.flatten().tolist())

    def end(self) -> None:
        self._ids.put(None)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._ids.get, None)


def load_models(target: str, anchor: str, judge: str, refuses: Callable[[str], bool] = refuses) -> Models:
    """Load models by their Hub ids or folders, to a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_causal(target, device)
    safe = load_causal(anchor, device)
    reads = load_judge(judge, device=device)
    translator = AlignBeam(*safe, tokenizer, reads).translator
    return Models(model, tokenizer, *safe, reads, translator, token_bytes(tokenizer), refuses)


def conversation(models: Models, prompt: str, begun: str) -> list[Message]:
    """A prompt, and the start of its answer where there is one, as messages.

    Raises:
        ValueError: The prompt says nothing, or leaves no room for an answer.
    """
    if not prompt.strip():
        raise ValueError("The prompt is empty. Type a question, or take one of the examples.")
    messages = [{"role": "user", "content": prompt}]
    if begun.strip():
        messages.append({"role": "assistant", "content": begun})
    n_tokens, most = encode([messages], models.tokenizer)["input_ids"].shape[-1], max_positions(models.target)
    if most is not None and n_tokens + MAX_NEW_TOKENS > most:
        raise ValueError(f"The prompt has {n_tokens} tokens, and the model takes {most - MAX_NEW_TOKENS}. Shorten it.")
    return messages


def plain(models: Models, messages: list[Message]) -> Iterator[Said]:
    """What the target says alone."""
    relay = Relay()
    ids, seconds = yield from _streamed(models, messages, relay, {"streamer": relay})
    said = Said(_begun(messages), _runs(models, [(i, None) for i in ids]))
    yield Said(said.begun, said.runs, models.refuses(said.text), Ledger(target_forwards=len(ids), seconds=seconds))


def guarded(models: Models, messages: list[Message], **settings: Any) -> Iterator[Said]:
    """What it says under guard.

    Args:
        models: The models.
        messages: The conversation.
        settings: Arguments of `AlignBeam`. A strategy is made of them for this answer alone: who shares none mixes up
            neither settings nor costs.

    Raises:
        ValueError: A setting is out of its range.
    """
    named = {"translation": models.translator, **settings}
    strategy = AlignBeam(models.anchor, models.anchor_tokenizer, models.tokenizer, models.judge, **named)
    relay = Relay()
    watched = watch(strategy, messages, models.tokenizer, relay)
    ids, _ = yield from _streamed(models, messages, relay, watched.generate_arguments)
    explanation = watched.explain(ids)
    said = Said(_begun(messages), _runs(models, [(token.id, token.kl) for token in explanation.tokens]))
    refused = explanation.chosen == -1 or models.refuses(said.text)
    yield Said(said.begun, said.runs, refused, strategy.ledger, explanation)


def _streamed(
    models: Models, messages: list[Message], relay: Relay, how: dict[str, Any]
) -> Generator[Said, None, tuple[list[int], float]]:
    """The answer as it comes; returns its ids, and the seconds that writing them took."""
    inputs = encode([messages], models.tokenizer).to(input_device(models.target))

    def write() -> tuple[list[int], float]:
        began = time.perf_counter()
        try:
            output = models.target.generate(**inputs, **how, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        finally:
            relay.end()  # whatever goes wrong, nobody waits for ever
        return output[0, inputs["input_ids"].shape[-1] :].tolist(), time.perf_counter() - began

    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(write)
        coming = iter(relay)
        next(coming, None)  # the prompt
        ids: list[int] = []
        for more in coming:
            ids += more
            yield Said(_begun(messages), _runs(models, [(i, None) for i in ids]))
        return written.result()


def _begun(messages: list[Message]) -> str:
    return messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""


def _runs(models: Models, tokens: Iterable[tuple[int, float | None]]) -> list[Run]:
    """Tokens as text; one that ends inside a character goes with the next, and special ones say nothing."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    runs: list[Run] = []
    moved: list[float] = []
    for i, nats in tokens:
        moved += [] if nats is None else [nats]
        if text := decoder.decode((models.pieces[i] if i < len(models.pieces) else None) or b""):
            runs.append((text, max(moved, default=None)))
            moved = []
    return runs
