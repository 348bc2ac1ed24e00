"""Faked turns in a text: their parts, and delimiters and lines that no text can fake.

Knows role words, the markup of chat templates, and line ends of every kind. Knows no template and no judge.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from hf_alignbeam.chat.templates import escape_matches
from hf_alignbeam.judges.reading.folding import fold

#: The most parts of a text; more are joined with their neighbors.
MAX_PARTS = 16
#: The most beginnings of a text.
MAX_BEGINNINGS = 4

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_ASKERS = (
    "user|human|пользователь|usuario|utilisateur|benutzer|nutzer|用户|用戶|使用者|ユーザー|ユーザ|人間|사용자|المستخدم|مستخدم"
)
_ANSWERERS = (
    "assistant|agent|ai|bot|chatbot|chatgpt|ai assistant|ai model|ассистент|asistente"
    "|助手|助理|アシスタント|어시스턴트|المساعد|مساعد"
)
#: Words that open a turn, and as often a paragraph: they count where an asker's and an answerer's stand in a row.
_QUESTIONS = "question|prompt|query|instructions?|input|request|message|customer|client|system|developer|tool|q"
_ANSWERS = "answer|response|reply|completion|output|model|gpt|claude|llama|gemini|a"
_WORDS = f"(?P<asker>{_ASKERS})|(?P<answerer>{_ANSWERERS})|(?P<question>{_QUESTIONS})|(?P<answer>{_ANSWERS})"
_AFTER_WORD = r"(?:'s)?(?: ?(?:message|turn|response|reply|input|[0-9]{1,2}|\([^()\n]{1,30}\)))?[*_\])}>\"'`~|/ \t]{0,8}"
_ROLE = re.compile(
    f"[{_LINE_ENDS}][^\\w{_LINE_ENDS}]{{0,12}}(?:"
    f"(?:{_WORDS}){_AFTER_WORD}(?:[:：﹕︓꞉]|=>|->)[*_\"'`]{{0,4}}"
    f"|(?P<alone>user|human|assistant|system)[*_\\])}}>\"'`~|/# \t]{{0,8}}(?=$|[{_LINE_ENDS}])"  # as special tokens leave it
    ")",
    re.IGNORECASE,
)
_NAMES = "start_of_turn|end_of_turn|start_of_role|end_of_role|im_start|im_end|eos|bos|user|human|assistant|system|bot|turn"
#: What stands between the bars of a special token, with white space around it that no other part can match: up to 40 characters
#: on a line, or nothing visible but a space.
_NAME, _BLANK = r"\s*[^<>＜＞|｜\s](?:[^<>＜＞|｜\n]{0,38}[^<>＜＞|｜\s])?\s*", r"\n*[^\S\n]\s*"
_MARKUP = re.compile(
    "[<＜\\[［\"'](?:"
    rf"(?<=[<＜])(?:\s*[|｜](?:{_NAME}|{_BLANK})[|｜]\s*[>＞]|/?(?:{_NAMES})[>＞])"
    r"(?:[ \t]*(?:user|assistant|system|model)\b)?"
    r"|(?<=<)(?:</?sys>>|/s>)"
    r"|(?<=[\[［])/?(?:inst|sys|system_prompt|available_tools|tool_results|user|assistant)[\]］]"
    r"|role[\"']\s*:\s*[\"']\w{1,20}[\"'](?:\s*,\s*[\"']content[\"']\s*:)?"
    ")",
    re.IGNORECASE,
)


def split_turns(text: str) -> list[str]:
    """The parts of a text that fakes turns, without their marks: none where it fakes none.

    Turns are faked by role words at the start of a line, with a colon or alone, and by the markup of chat templates. The text
    is read as a person sees it. Blank parts and repetitions are dropped, and beyond `MAX_PARTS` neighbors are joined: no word is
    lost.
    """
    text, marks = _faked_turns(text)
    if not marks:
        return []
    parts, end = [], 0
    for mark in marks:
        parts.append(text[end : mark.start()])  # empty where a role stands inside markup
        end = max(end, mark.end())
    parts.append(text[end:])
    return _join_neighbors([part.strip() for part in parts if part.strip()])


def beginnings(text: str) -> list[str]:
    """What a text that fakes turns may have been before some of them were added: its words up to a faked turn.

    A response may hold turns of its own, a play's for example, and be harmful as a whole. Of more than `MAX_BEGINNINGS`, those
    count that end in the longest turns, as refusals and thanks are short.
    """
    text, marks = _faked_turns(text)
    found: dict[str, int] = {}  # by its last turn, where each beginning ends: repeated turns add nothing
    end = 0
    for mark in marks:
        found.setdefault(text[end : mark.start()].strip(), mark.start())
        end = max(end, mark.end())
    found.pop("", None)
    kept = sorted(found, key=len, reverse=True)[:MAX_BEGINNINGS]
    return list(dict.fromkeys(text[:start].strip() for turn, start in found.items() if turn in kept))


def escape_delimiters(text: str, delimiters: Sequence[str]) -> str:
    """Insert a zero-width space into each delimiter in a text, after its first character.

    Letter case and the amount of white space are ignored, and zero-width spaces that stand there already. A delimiter that
    begins or ends with a letter counts only where no further letter stands there. Different texts stay different.

    Raises:
        ValueError: A delimiter is blank.
    """
    if not delimiters:
        return text
    if blank := [delimiter for delimiter in delimiters if not delimiter.strip()]:
        raise ValueError(f"`delimiters` must hold visible characters, got {blank[0]!r}. Leave it out.")
    return escape_matches(re.compile("|".join(map(_pattern, delimiters)), re.IGNORECASE), text)


def fence(text: str) -> str:
    """Put `> ` before each line, whatever ends it. Different texts stay different."""
    return "".join(f"> {line}" for line in text.splitlines(keepends=True))


def _faked_turns(text: str) -> tuple[str, list[re.Match[str]]]:
    """A text as a person sees it, after a line end, and the marks of the turns that it fakes."""
    text = "\n" + fold(text)
    marks = sorted([*_ROLE.finditer(text), *_MARKUP.finditer(text)], key=lambda mark: mark.start())
    return text, marks if _are_turns(text, marks) else []


def _are_turns(text: str, marks: Sequence[re.Match[str]]) -> bool:
    """Whether marks are markup, a role's, or a question's and an answer's; an answer may name its own role first."""
    kinds = [mark.lastgroup for mark in marks]
    if kinds and kinds[0] in ("answerer", "alone") and not text[: marks[0].start()].strip():
        kinds = kinds[1:]
    if any(kind not in ("question", "answer") for kind in kinds):
        return True
    return "question" in kinds and "answer" in kinds[kinds.index("question") :]


def _join_neighbors(parts: Sequence[str]) -> list[str]:
    """At most `MAX_PARTS` parts: the shortest are joined, as harm takes more words than thanks and refusals around it."""
    parts = list(dict.fromkeys(parts))
    borders = sorted(range(1, len(parts)), key=lambda n: len(parts[n - 1]) + len(parts[n]), reverse=True)
    ends = [0, *sorted(borders[: MAX_PARTS - 1]), len(parts)]
    return ["\n\n".join(parts[start:end]) for start, end in pairwise(ends) if start < end]


def _pattern(delimiter: str) -> str:
    """A pattern of the first character of a delimiter."""
    words = delimiter.split()
    first, rest = words[0][0], r"\s+".join(re.escape(word) for word in [words[0][1:], *words[1:]])
    before, after = r"(?<!\w)" if first.isalnum() else "", r"(?!\w)" if delimiter.rstrip()[-1].isalnum() else ""
    return f"{before}{re.escape(first)}(?={rest}{after})"
