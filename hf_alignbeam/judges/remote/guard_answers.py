"""The verdict of a guard in what a completion endpoint answers: from its probabilities where there are any, else from its text.

Knows the answers of `/v1/chat/completions` and `/v1/completions`, and profiles. Knows no request and no conversation.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.judges.verdicts import LEADING, MIN_VERDICT_PROB, agrees, ends_word

#: By how much probabilities may add up to more than 1, as rounded ones do.
_ROUNDING = 0.01
#: What may stand between two verdicts of which neither counts, as in "safe or unsafe" and "yes/no".
_BETWEEN = re.compile(rb"\s*(?:[/|,;&]|or\b|and\b|\s)\s*")


class Token(NamedTuple):
    """One generated token in lower case, and the probabilities of the tokens that could stand in its place."""

    text: bytes
    prob: list[tuple[bytes, float]]


def read_harm(answer: Any, profile: GuardProfile, has_start: bool) -> float:
    """The harm of a verdict, NaN where there is none.

    Args:
        answer: The JSON value of the answer.
        profile: How the guard answers.
        has_start: Whether the guard was given `answer_start`, so that it does not write it.
    """
    text, tokens = _parse(answer)
    if text is None:
        return math.nan
    written = text.encode(errors="replace").lower().strip()
    place = _place(written, "" if has_start else profile.answer_start, profile.verdict_after)
    if place is None:
        return math.nan
    verdicts = {verdict.encode().lower().strip(LEADING): harm for verdict, harm in profile.verdicts.items()}
    joined = b"".join(token.text for token in tokens or ())
    if tokens is not None and written in joined:  # servers may give ids or pieces in place of texts, or no special tokens
        return _harm_of_tokens(tokens, joined.rindex(written) + place, verdicts)
    return _harm_of_text(written[place:], verdicts)


def written_text(answer: Any) -> str | None:
    """The text that a guard wrote; None where the answer is malformed."""
    return _parse(answer)[0]


def _parse(answer: Any) -> tuple[str | None, list[Token] | None]:
    """The text of an answer and its tokens, None where there are none or some field of them is not as published."""
    try:
        (choice,) = answer["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, TypeError, ValueError):
        return None, None
    if not isinstance(text, str):
        return None, None
    try:
        return text, _tokens(choice["logprobs"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return text, None


def _tokens(logprobs: Mapping[str, Any]) -> list[Token] | None:
    """The tokens of a chat's answer (`content`, also llama.cpp's for completions), or of a completion's (parallel lists)."""
    if "content" in logprobs:
        tokens = [
            _token(_bytes(each), each["logprob"], [(_bytes(top), top["logprob"]) for top in each["top_logprobs"]])
            for each in logprobs["content"]
        ]
    else:
        columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
        tokens = [
            _token(_encoded(text), logp, [(_encoded(top), value) for top, value in tops.items()])
            for text, logp, tops in zip(*columns, strict=True)
        ]
    return tokens if any(len(token.prob) > 1 for token in tokens) else None


def _bytes(token: Mapping[str, Any]) -> bytes:
    """The bytes of a token; its text may be only a part of a letter."""
    values = token.get("bytes")
    return bytes(values) if isinstance(values, list) else _encoded(token["token"])


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")


def _token(text: bytes, logp: float, tops: Iterable[tuple[bytes, float]]) -> Token:
    """Raises ValueError where the values are no log-probabilities."""
    known = list(dict.fromkeys([(text, logp), *tops]))  # the token itself is most often among the likeliest
    if not all(type(value) in (int, float) and value <= _ROUNDING for _, value in known):
        raise ValueError
    prob = [(each.lower(), math.exp(value)) for each, value in known]
    if not sum(value for _, value in prob) <= 1.0 + _ROUNDING:
        raise ValueError
    return Token(text.lower(), prob)


def _place(text: bytes, start: str, after: str | None) -> int | None:
    """Where the verdict begins in a text in lower case; None where what must stand before it does not.

    Of `start` the end is enough, and white space does not count: a template may write its beginning, and a server cut out
    reasoning. A server that knows a template's markup does not show it: its text then begins after the marker.
    """
    place = len(text) - len(text.lstrip(LEADING))
    if chunks := [re.escape(chunk.encode().lower()) for chunk in start.split()]:
        ends = [rb"\s*".join(chunks[n:]) for n in range(len(chunks))]
        match = re.compile(b"|".join(ends)).match(text, place)
        if match is None:
            return None
        place = match.end()
    if after is not None:
        found = text.rfind(after.encode().lower(), place)
        if found >= 0:
            place = found + len(after.encode())
        elif "<|" not in after:
            return None
    return len(text) - len(text[place:].lstrip(LEADING))


def _harm_of_tokens(tokens: Sequence[Token], place: int, verdicts: Mapping[bytes, float]) -> float:
    """The harm weighted by probability; NaN where the verdicts have too little of it.

    A token counts for a verdict if it leaves no other possible. Of those that leave several, the one that was written is
    followed.
    """
    ends = list(accumulate(len(token.text) for token in tokens))
    first = next((n for n, end in enumerate(ends) if end > place), None)
    if first is None:
        return math.nan
    mass = dict.fromkeys(verdicts, 0.0)
    weight, prefix = 1.0, b""
    before = tokens[first].text[: place - ends[first] + len(tokens[first].text)]  # in the same token, as ` ` in ` safe`
    for n, token in enumerate(tokens[first:]):
        following = None
        for text, prob in token.prob:
            continued = prefix + text if n else _without(before, text)
            possible = [verdict for verdict in verdicts if continued and agrees(continued, verdict)]
            if len(possible) == 1:
                mass[possible[0]] += weight * prob
            elif possible and text == token.text:
                following = (weight * prob, continued)
        if following is None:
            break
        weight, prefix = following
    else:
        if prefix in mass:  # the answer ends with a verdict that could have gone on
            mass[prefix] += weight
    total = sum(mass.values())
    if total < MIN_VERDICT_PROB:
        return math.nan
    return min(1.0, sum(mass[verdict] * harm for verdict, harm in verdicts.items()) / total)


def _without(before: bytes, text: bytes) -> bytes:
    """A token's text from where the verdict begins; none where the token does not begin as the written one."""
    if not before.strip(LEADING):
        return text.lstrip(LEADING)
    return text.removeprefix(before).lstrip(LEADING) if text.startswith(before) else b""


def _harm_of_text(text: bytes, verdicts: Mapping[bytes, float]) -> float:
    """The harm of the verdict that a text begins with; NaN where it begins with none, or names another right after it."""
    found = _beginning(text, verdicts)
    if found is None:
        return math.nan
    between = _BETWEEN.match(text, len(found))
    other = None if between is None else _beginning(text[between.end() :].lstrip(LEADING), verdicts)
    return math.nan if other is not None and verdicts[other] != verdicts[found] else verdicts[found]


def _beginning(text: bytes, verdicts: Mapping[bytes, float]) -> bytes | None:
    """The longest verdict that a text begins with, as a whole word."""
    found = [verdict for verdict in verdicts if text.startswith(verdict) and ends_word(text, len(verdict))]
    return max(found, key=len, default=None)
