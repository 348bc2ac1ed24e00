"""A streamer that is checked, gets the prompt before generation and is ended after it, also if generation fails.

Knows streamers. Knows no text.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers.generation import BaseStreamer


def check_streamer(streamer: object) -> None:
    """Raise ValueError unless a streamer is None or has the methods `put` and `end`."""
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise ValueError(f"`streamer` must have the methods `put` and `end`, got {streamer!r}. Use `TextStreamer(tokenizer)`.")


@contextmanager
def streaming(streamer: BaseStreamer | None, input_ids: Tensor) -> Iterator[None]:
    """Give a streamer the prompt before a block of code, and end it after the block, so that its reader never waits forever.

    Where the block fails and the streamer cannot be ended either, the block's error gets a note of it.

    Args:
        streamer: The streamer; None to do nothing.
        input_ids: (B, length) prompts.

    Raises:
        ValueError: It is no streamer, or there is more than one prompt to stream.
    """
    check_streamer(streamer)
    try:
        if streamer is not None:
            if len(input_ids) != 1:
                raise ValueError(
                    f"`streamer` must be left out for a batch, got one for {len(input_ids)} rows. Stream one prompt."
                )
            streamer.put(input_ids.cpu())
        yield
    except BaseException as failure:
        try:
            _end(streamer)
        except Exception as error:  # a user's streamer may raise anything
            failure.add_note(f"`streamer.end()` failed, too: {error!r}")
        raise
    _end(streamer)


def _end(streamer: BaseStreamer | None) -> None:
    if streamer is not None:
        streamer.end()
