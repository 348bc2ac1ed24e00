"""A target's plain and guarded answers to one prompt, streamed, each with its cost at the end.

Knows models and text. Knows no page: `panels.py` turns answers into HTML, `app.py` lays it out.
"""

import codecs
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from hf_alignbeam import AlignBeam, VocabularyTranslator, token_bytes
from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.cli.explanation.explained import Explanation, watch
from hf_alignbeam.evaluation.devices import load_causal
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.evaluation.scorers import refuses
from hf_alignbeam.hub.judge_loading import load_judge
from hf_alignbeam.inference.engines import input_device, max_positions
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.steering.ledger import Ledger

MAX_NEW_TOKENS = 256
#: What a visitor may send: characters of a prompt with its prefill, tokens with those of the answer, and settings.
MAX_CHARACTERS, MAX_TOKENS = 8_000, 4_096
RANGES = {"alpha": (0.05, 1.0), "num_candidates": (1, 8), "threshold": (0.0, 1.0)}
#: Seconds after which an answer is yielded again as it is: only then does the server notice that its visitor has left.
PATIENCE = 1.0
#: A piece of text, and how far steering moved it in nats; None where it was not steered.
Span = tuple[str, float | None]


@dataclass(frozen=True)
class Models:
    """The models that all users share. `pieces` holds the bytes of the target's tokens, `refuses` recognizes refusals."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anchor: PreTrainedModel
    anchor_tokenizer: PreTrainedTokenizerBase
    judge: Judge
    translator: VocabularyTranslator
    pieces: Sequence[bytes | None]
    refuses: Callable[[str], bool]


@dataclass(frozen=True)
class StreamedAnswer:
    """An answer, finished or still being generated.

    Attributes:
        prefill: Its start, if the prompt held one.
        spans: The generated text so far; for a guarded answer, the text that the judge has passed.
        refused: Whether it refuses. This and the following fields are None until the answer is finished.
        cost: Its cost.
        explanation: For a guarded answer, how it came about.
    """

    prefill: str
    spans: Sequence[Span] = ()
    refused: bool | None = None
    cost: Ledger | None = None
    explanation: Explanation | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return (self.prefill + "".join(text for text, _ in self.spans)).strip()


class IdStreamer(BaseStreamer):
    """Hands generated ids from the thread that generates them to the one that reads them; nothing once in a while."""

    def __init__(self) -> None:
        self._ids: SimpleQueue[list[int] | None] = SimpleQueue()
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt:
            self._ids.put(value.flatten().tolist())
        self._has_prompt = True

    def end(self) -> None:
        self._ids.put(None)

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            try:
                ids = self._ids.get(timeout=PATIENCE)
            except Empty:
                ids = []
            if ids is None:
                return
            yield ids


class VisitorLeftError(Exception):
    """Ends the generation of an answer that nobody reads."""


class StopWhenLeft(LogitsProcessor):
    """Raises VisitorLeftError at the next token, of a candidate too, once the event is set."""

    def __init__(self, left: Event):
        self._left = left

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._left.is_set():
            raise VisitorLeftError
        return scores


def load_models(target: str, anchor: str, judge: str, refuses: Callable[[str], bool] = refuses) -> Models:
    """Load models by their Hub ids or folders, to a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_causal(target, device)
    safe = load_causal(anchor, device)
    judge_model = load_judge(judge, device=device)
    translator = AlignBeam(*safe, tokenizer, judge_model).translator
    return Models(model, tokenizer, *safe, judge_model, translator, token_bytes(tokenizer), refuses)


def checked_settings(**settings: Any) -> dict[str, Any]:
    """Numbers that a visitor sent, by the names of `RANGES`.

    Raises:
        ValueError: One is no number, or out of its range.
    """
    for name, value in settings.items():
        least, most = RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"`{name}` must be a number from {least:g} to {most:g}, got {value!r:.40}.")
        if isinstance(least, int) and value != int(value):
            raise ValueError(f"`{name}` must be a whole number, got {value!r:.40}.")
    return {name: type(RANGES[name][0])(value) for name, value in settings.items()}


def conversation(models: Models, prompt: str, prefill: str) -> list[Message]:
    """A prompt, and optionally the start of its answer, as messages.

    Raises:
        ValueError: The prompt is empty or no text, or leaves no room for an answer.
    """
    for text in (prompt, prefill):
        if not isinstance(text, str):
            raise ValueError(f"The prompt must be text, got {text!r:.40}.")
        text.encode()  # raises for half a character
    if not prompt.strip():
        raise ValueError("The prompt is empty. Type a question, or take one of the examples.")
    if (n_characters := len(prompt) + len(prefill)) > MAX_CHARACTERS:
        raise ValueError(f"The prompt has {n_characters} characters, and {MAX_CHARACTERS} are allowed. Shorten it.")
    messages = [{"role": "user", "content": prompt}]
    if prefill.strip():
        messages.append({"role": "assistant", "content": prefill})
    n_tokens, most = encode([messages], models.tokenizer)["input_ids"].shape[-1], max_positions(models.target)
    most = MAX_TOKENS if most is None else min(most, MAX_TOKENS)
    if n_tokens + MAX_NEW_TOKENS > most:
        raise ValueError(f"The prompt has {n_tokens} tokens, and the model takes {most - MAX_NEW_TOKENS}. Shorten it.")
    return messages


def plain(models: Models, messages: list[Message]) -> Iterator[StreamedAnswer]:
    """Stream the target's answer without a guard."""
    streamer = IdStreamer()
    ids, seconds = yield from _streamed(models, messages, streamer, {"streamer": streamer})
    answer = StreamedAnswer(_prefill(messages), _spans(models, [(i, None) for i in ids]))
    yield StreamedAnswer(
        answer.prefill, answer.spans, models.refuses(answer.text), Ledger(target_forwards=len(ids), seconds=seconds)
    )


def guarded(models: Models, messages: list[Message], **settings: Any) -> Iterator[StreamedAnswer]:
    """Stream the guarded answer.

    Args:
        models: The models.
        messages: The conversation.
        settings: Arguments of `AlignBeam`. Each answer has a strategy of its own, so that settings and costs do not mix.

    Raises:
        ValueError: A setting is out of its range.
    """
    arguments = {"translation": models.translator, **settings}
    strategy = AlignBeam(models.anchor, models.anchor_tokenizer, models.tokenizer, models.judge, **arguments)
    streamer = IdStreamer()
    watched = watch(strategy, messages, models.tokenizer, streamer)
    ids, _ = yield from _streamed(models, messages, streamer, watched.generate_arguments)
    explanation = watched.explain(ids)
    answer = StreamedAnswer(_prefill(messages), _spans(models, [(token.id, token.kl) for token in explanation.tokens]))
    refused = explanation.chosen == -1 or models.refuses(answer.text)
    yield StreamedAnswer(answer.prefill, answer.spans, refused, strategy.ledger, explanation)


def _streamed(
    models: Models, messages: list[Message], streamer: IdStreamer, how: dict[str, Any]
) -> Generator[StreamedAnswer, None, tuple[list[int], float]]:
    """Stream an answer; returns its ids and the seconds that generating them took. Closed early, it stops generating them."""
    inputs = encode([messages], models.tokenizer).to(input_device(models.target))
    left = Event()
    how = {**how, "logits_processor": [StopWhenLeft(left)], "max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}

    def write() -> tuple[list[int], float]:
        start = time.perf_counter()
        try:
            output = models.target.generate(**inputs, **how)
        finally:
            streamer.end()  # also after an error, so that the reader does not wait forever
        return output[0, inputs["input_ids"].shape[-1] :].tolist(), time.perf_counter() - start

    thread = ThreadPoolExecutor(1)
    try:
        written = thread.submit(write)
        ids: list[int] = []
        for new_ids in streamer:
            ids += new_ids
            yield StreamedAnswer(_prefill(messages), _spans(models, [(i, None) for i in ids]))
        return written.result()
    finally:
        left.set()
        thread.shutdown(wait=False)  # the server closes answers in the thread that serves everybody


def _prefill(messages: list[Message]) -> str:
    return messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""


def _spans(models: Models, tokens: Iterable[tuple[int, float | None]]) -> list[Span]:
    """Tokens as text; a token that ends inside a character is joined with the next, special tokens are omitted."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    spans: list[Span] = []
    moved: list[float] = []
    for i, nats in tokens:
        moved += [] if nats is None else [nats]
        if text := decoder.decode((models.pieces[i] if i < len(models.pieces) else None) or b""):
            spans.append((text, max(moved, default=None)))
            moved = []
    return spans
