"""Files of prompts: CSV and TSV tables, JSON, JSON lines and plain text, in UTF-8, gzipped or not.

Knows formats, where in a file each record stands, and the published layouts of labeled responses. Knows no published layout of
prompts (`prompt_sets` does) and no model.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_alignbeam.chat.conversations import Message, as_messages

#: The separator of each kind of table.
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".json", ".jsonl")
#: The questions of GPTFuzz's responses, in a file beside them.
GPTFUZZ_QUESTIONS = "gptfuzz_questions.csv"
#: An error quotes so many characters of a record.
N_QUOTED = 200


@dataclass(frozen=True)
class PromptRecord:
    """One record of a file or a data set.

    Attributes:
        place: Where it stands, for errors.
        fields: Its values by the names of their columns or keys; a line of text is the `prompt`.
        quote: Its beginning, for errors.
    """

    place: str
    fields: Mapping[str, Any]
    quote: str = ""


@dataclass(frozen=True)
class LabeledResponse:
    """A response to a conversation, and whether it does harm."""

    conversation: list[Message]
    response: str
    harmful: bool


def read_records(path: Path, mixed: bool = False) -> list[PromptRecord]:
    """Read the records of a file: rows of a table, items of a JSON list, JSON objects or prompts line by line.

    Lines end at line feeds alone, and blank lines are skipped.

    Args:
        path: The file. Its suffix names the format, with `.gz` after it if compressed. `.json` may hold a list or lines.
        mixed: Whether JSON objects and prompts may stand in one file, whatever its suffix: a line that begins with `{` is an
            object. Otherwise every line of `.json` and `.jsonl` must be an object, and every line of other files is a prompt.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not UTF-8, or a record is broken; the message names the line or row.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    text = _read_text(path)
    if suffix in SEPARATORS:
        return list(_rows(path, text, SEPARATORS[suffix]))
    if suffix == ".json" and (items := _items(path, text)) is not None:
        return items
    lines = ((f"Line {n} of {path}", line.strip()) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
    if mixed:
        return [_object(place, line) if line.startswith("{") else _prompt(place, line) for place, line in lines]
    return [_object(place, line) if suffix in JSON_SUFFIXES else _prompt(place, line) for place, line in lines]


def read_prompts(path: Path) -> list[list[Message]]:
    """Read the conversations of a file: lines of text, or records with `prompt` or `messages`.

    Raises:
        ValueError: A record has neither, or they hold no text; the message names the place.
    """
    conversations = []
    for record in read_records(path, mixed=True):
        messages, prompt = record.fields.get("messages"), record.fields.get("prompt")
        if not isinstance(messages, list) and not isinstance(prompt, str):
            raise ValueError(f"{record.place} must have a string 'prompt' or a list 'messages', got {record.quote}.")
        conversations.append(_conversation(record, messages if isinstance(messages, list) else prompt))
    return conversations


def read_labeled_responses(path: Path) -> list[LabeledResponse]:
    """Read the records of a file with `prompt` or `messages`, `response` and `harmful`, or in a published layout.

    GPTFuzz's responses (question, Response, label) need its questions beside them, in `gptfuzz_questions.csv`. Of XSTest's
    (prompt, type, completion, final_label), those are harmful that fully comply with a prompt of a contrast type.

    Raises:
        OSError: The file, or that of GPTFuzz's questions, cannot be read.
        ValueError: A record lacks a value, or the file is empty; the message names the place.
    """
    records = read_records(path, mixed=True)
    if not records:
        raise ValueError(f"{path} must hold at least one labeled response, got none.")
    fields = records[0].fields.keys()
    if {"question", "Response", "label"} <= fields:
        questions = {row.fields["index"]: row.fields["text"] for row in read_records(path.parent / GPTFUZZ_QUESTIONS)}
        records = [_gptfuzz(record, questions) for record in records]
    elif {"type", "completion", "final_label"} <= fields:
        records = [_xstest(record) for record in records]
    return [_labeled(record) for record in records]


def _labeled(record: PromptRecord) -> LabeledResponse:
    try:
        conversation = record.fields["messages"] if "messages" in record.fields else record.fields["prompt"]
        response, harmful = record.fields["response"], record.fields["harmful"]
    except KeyError as error:
        raise ValueError(
            f"{record.place} must have 'prompt' or 'messages', 'response' and 'harmful', got {record.quote}."
        ) from error
    if not isinstance(response, str) or not isinstance(harmful, bool):
        raise ValueError(f"{record.place} must have a text as 'response' and true or false as 'harmful', got {record.quote}.")
    return LabeledResponse(_conversation(record, conversation), response, harmful)


def _gptfuzz(record: PromptRecord, questions: Mapping[str, str]) -> PromptRecord:
    question, label = record.fields["question"], record.fields["label"]
    if question not in questions or label not in ("0", "1"):
        raise ValueError(
            f"{record.place} must have a question of {GPTFUZZ_QUESTIONS} and the label 0 or 1, got {question!r} and {label!r}."
        )
    fields = {"prompt": questions[question], "response": record.fields["Response"], "harmful": label == "1"}
    return PromptRecord(record.place, fields, record.quote)


def _xstest(record: PromptRecord) -> PromptRecord:
    kind, label = record.fields["type"], record.fields["final_label"]
    harmful = str(kind).startswith("contrast") and str(label).startswith("1")
    fields = {"prompt": record.fields["prompt"], "response": record.fields["completion"], "harmful": harmful}
    return PromptRecord(record.place, fields, record.quote)


def _conversation(record: PromptRecord, conversation: Any) -> list[Message]:
    try:
        return as_messages(conversation)
    except ValueError as error:
        raise ValueError(f"{record.place}: {error}") from error


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a complete gzip file, as its suffix says: {error}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"Line {line} of {path} must be text in UTF-8: {error}. Convert the file.") from error


def _rows(path: Path, text: str, separator: str) -> Iterator[PromptRecord]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for number, row in enumerate(rows, start=1):
            yield _record(f"Row {number} of {path}", row)
    except csv.Error as error:
        raise ValueError(f"Line {rows.reader.line_num} of {path} must be part of a table: {error}.") from error


def _items(path: Path, text: str) -> list[PromptRecord] | None:
    """The items of a JSON list, or a single object; None where the text may be JSON lines."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"Line {error.lineno} of {path} must be part of a JSON list: {error}.") from error
        return None
    if not isinstance(value, list | dict):
        return None
    items = value if isinstance(value, list) else [value]
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise ValueError(f"Item {number} of {path} must be a JSON object, got {_quoted(item)}.")
    return [_record(f"Item {number} of {path}", item) for number, item in enumerate(items, start=1)]


def _object(place: str, line: str) -> PromptRecord:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} must be a JSON object, got {line[:N_QUOTED]!r}: {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{place} must be a JSON object, got {line[:N_QUOTED]!r}.")
    return PromptRecord(place, fields, line[:N_QUOTED])


def _prompt(place: str, line: str) -> PromptRecord:
    return PromptRecord(place, {"prompt": line}, line[:N_QUOTED])


def _record(place: str, fields: Mapping[str, Any]) -> PromptRecord:
    return PromptRecord(place, fields, _quoted(fields))


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:N_QUOTED]
