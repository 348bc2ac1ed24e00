"""The readings of an exchange that a judge gives verdicts on, and the worst verdict of them.

Knows that a text may be disguised or fake turns. Knows no rendering, no model and no threshold.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.judges.reading.folding import fold
from hf_alignbeam.judges.reading.turns import beginnings, split_turns

Exchange = tuple[list[Message], str]


def exchange_readings(messages: list[Message], response: str) -> list[Exchange]:
    """The exchange itself, a folded copy where folding changes something, and one for each part and beginning of faked turns."""
    folded = [{**message, "content": fold(message["content"])} for message in messages]
    shown = fold(response)
    readings = [(messages, response)]
    if shown != response or folded != messages:
        readings.append((folded, shown))
    parts = dict.fromkeys([*split_turns(shown), *beginnings(shown)])
    return readings + [(folded, part) for part in parts if part != shown]


def worst_of_readings(exchanges: Sequence[Exchange], judge: Callable[[Sequence[Exchange]], Tensor]) -> Tensor:
    """The largest harm of each exchange's readings, judged in one call.

    Args:
        exchanges: n conversations, each with the response to it.
        judge: Gives each exchange its harm, NaN where there is no verdict.

    Returns:
        (n,) harm; NaN where any reading has no verdict.

    Raises:
        ValueError: `judge` does not return one harm for each exchange.
    """
    readings = [exchange_readings(messages, response) for messages, response in exchanges]
    flat = [exchange for each in readings for exchange in each]
    harm = judge(flat)
    if harm.shape != (len(flat),):
        raise ValueError(f"`judge` must return one harm for each exchange, got {tuple(harm.shape)} for {len(flat)}.")
    if len(flat) == len(readings):
        return harm
    return torch.stack([of_one.max() for of_one in harm.split([len(each) for each in readings])])  # max keeps NaN
