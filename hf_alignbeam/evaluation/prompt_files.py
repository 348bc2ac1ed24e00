"""Files of prompts: CSV and TSV tables, JSON, JSON lines and plain text, in UTF-8, gzipped or not.

Knows formats, where in a file each record stands, and the published layouts of labeled responses. Knows no published layout of
prompts (`prompt_sets` does) and no model.
"""

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from hf_alignbeam.chat.conversations import Message, as_messages
from hf_alignbeam.evaluation.files.text import numbered_lines, read_text
from hf_alignbeam.evaluation.files.values import check_value, parse_json

#: The separator of each kind of table.
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
TEXT = ("", ".txt", ".text", ".md")
#: A line that is the beginning of JSON, and no prompt of a person. `[INST]` and `{{char}}` are text.
LIKE_JSON = re.compile(r'[\[{]\s*$|\{\s*["}]|\[\s*[\[{"\]\d]')
#: A conversation in a table's cell.
MESSAGES_IN_A_CELL = re.compile(r'\s*\[\s*\{\s*"')
#: Names of columns by which the first line of a table is recognized.
COLUMNS = frozenset(
    {"prompt", "messages", "goal", "behavior", "question", "instruction", "label", "response", "harmful", "text", "conversation"}
)
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
    """A response to a conversation, whether it does harm, and where it stands."""

    conversation: list[Message]
    response: str
    harmful: bool
    place: str


def read_records(path: Path) -> list[PromptRecord]:
    """Read the records of a file: rows of a table, items of a JSON list, JSON objects or prompts line by line.

    A JSON string is a prompt, and a JSON list of messages a conversation. A line of a text file may be a JSON object, too. Blank
    lines are skipped.

    Args:
        path: The file. Its suffix names the format, with `.gz` after it if compressed. `.json` may hold a list or lines.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is of no known format, not UTF-8, or a record is broken; the message names the line or row.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in (*SEPARATORS, ".json", *JSON_LINES, *TEXT):
        raise ValueError(
            f"{path} must be a table (.csv, .tsv), JSON (.json, .jsonl) or text (.txt), got the suffix {suffix}. Convert it, "
            "or rename it if it is one of these."
        )
    text = read_text(path)
    if suffix in SEPARATORS:
        return _rows(path, text, SEPARATORS[suffix])
    if suffix == ".json" and (items := _items(path, text)) is not None:
        return items
    lines = numbered_lines(path, text)
    if suffix not in TEXT:
        return [_json_line(place, line) for place, line in lines]
    if lines:
        _check_no_table(*lines[0])
    return [_json_line(place, line) if LIKE_JSON.match(line) else _record(place, {"prompt": line}) for place, line in lines]


def file_and_rows(name: str) -> tuple[str, Literal["odd", "even"] | None]:
    """The path of FILE, FILE:odd or FILE:even, and which rows to keep; None for all.

    Raises:
        ValueError: Something else follows the colon.
    """
    path, _, rows = name.partition(":")
    if rows and rows not in ("odd", "even"):
        raise ValueError(f"{name} must be FILE, FILE:odd or FILE:even, got {rows!r} after the colon. Leave it out for all rows.")
    return path, cast(Literal["odd", "even"] | None, rows or None)


def read_labeled_responses(path: Path) -> list[LabeledResponse]:
    """Read the records of a file with `prompt` or `messages`, `response` and `harmful`, or in a published layout.

    GPTFuzz's responses (question, Response, label) need its questions beside them, in `gptfuzz_questions.csv`. Of XSTest's
    (prompt, type, completion, final_label), those are harmful that fully comply with a prompt of a contrast type.

    Raises:
        OSError: The file, or that of GPTFuzz's questions, cannot be read.
        ValueError: A record lacks a value, or the file is empty; the message names the place.
    """
    records = read_records(path)
    if not records:
        raise ValueError(f"{path} must hold at least one labeled response, got none.")
    fields = records[0].fields.keys()
    if {"question", "Response", "label"} <= fields:
        questions = _gptfuzz_questions(path.parent / GPTFUZZ_QUESTIONS)
        records = [_gptfuzz(record, questions) for record in records]
    elif {"type", "completion", "final_label"} <= fields:
        records = [_xstest(record) for record in records]
    return [_labeled(record) for record in records]


def conversation_of(record: PromptRecord, value: Any) -> list[Message]:
    """The conversation that a record has as its prompt: a text, a list of messages, or such a list as JSON in a table's cell.

    Raises:
        ValueError: It is none of these, or holds no text; the message names the place.
    """
    try:
        if isinstance(value, str) and MESSAGES_IN_A_CELL.match(value):
            value = parse_json(value, record.place)
            check_value(value, record.place)
        return as_messages(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{record.place} must have a list of messages in JSON, got {record.quote}: {error}.") from error
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(record.place) else f"{record.place}: {error}") from error


def parse_bool(value: Any) -> bool:
    """True or false, as JSON and the cells of tables write them.

    Raises:
        ValueError: The value is neither.
    """
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if (word := str(value).strip().lower().removesuffix(".0")) not in words:
        raise ValueError(f"{value!r} where it must be true or false")
    return words[word]


def _labeled(record: PromptRecord) -> LabeledResponse:
    try:
        conversation = record.fields["prompt"] if record.fields.get("messages") in (None, "") else record.fields["messages"]
        response, label = record.fields["response"], record.fields["harmful"]
    except KeyError as error:
        raise ValueError(
            f"{record.place} must have 'prompt' or 'messages', 'response' and 'harmful', got {record.quote}."
        ) from error
    try:
        harmful = parse_bool(label)
    except ValueError as error:
        raise ValueError(f"{record.place} must have true or false as 'harmful', got {record.quote}.") from error
    if not isinstance(response, str):
        raise ValueError(f"{record.place} must have a text as 'response', got {record.quote}.")
    return LabeledResponse(conversation_of(record, conversation), response, harmful, record.place)


def _gptfuzz_questions(path: Path) -> dict[str, str]:
    rows = read_records(path)
    if rows and not {"index", "text"} <= rows[0].fields.keys():
        raise ValueError(f"{path} must have the columns index and text, got {', '.join(rows[0].fields)}.")
    return {row.fields["index"]: row.fields["text"] for row in rows}


def _gptfuzz(record: PromptRecord, questions: Mapping[str, str]) -> PromptRecord:
    question, label = str(record.fields.get("question")), record.fields.get("label")
    if question not in questions or label not in ("0", "1"):
        raise ValueError(
            f"{record.place} must have a question of {GPTFUZZ_QUESTIONS} and the label 0 or 1, got {question!r} and {label!r}."
        )
    fields = {"prompt": questions[question], "response": record.fields.get("Response"), "harmful": label == "1"}
    return PromptRecord(record.place, fields, record.quote)


def _xstest(record: PromptRecord) -> PromptRecord:
    prompt, kind, response, label = (record.fields.get(name) for name in ("prompt", "type", "completion", "final_label"))
    if str(label)[:1] not in tuple("123"):
        raise ValueError(f"{record.place} must have a final_label that begins with 1, 2 or 3, got {label!r}.")
    harmful = str(kind).startswith("contrast") and str(label).startswith("1")
    return PromptRecord(record.place, {"prompt": prompt, "response": response, "harmful": harmful}, record.quote)


def _rows(path: Path, text: str, separator: str) -> list[PromptRecord]:
    """The rows of a table below its first line. Quotes and the number of cells must be right: else cells run together."""
    table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the module's own, of 131,072 characters by default
    try:
        columns = [name.strip() for name in next(table, [])]
        doubled = sorted({name for name in columns if name and columns.count(name) > 1})
        if doubled:
            raise ValueError(f"Line 1 of {path} must name each column once, got {doubled[0]!r} twice. Rename one.")
        records: list[PromptRecord] = []
        for cells in filter(None, table):
            place = f"Row {len(records) + 1} of {path}"
            if len(cells) != len(columns):
                raise ValueError(
                    f"{place} (up to line {table.line_num}) must have {len(columns)} cells, as the first line has, got "
                    f"{len(cells)}: {_quoted(cells)}. Quote a cell that holds the separator, and double the quotes in it."
                )
            records.append(_record(place, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise ValueError(f"Line {table.line_num} of {path} must be part of a table: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    return records


def _items(path: Path, text: str) -> list[PromptRecord] | None:
    """The items of a JSON list, or a single object; None where the text may be JSON lines."""
    try:
        value = parse_json(text, str(path))
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"Line {error.lineno} of {path} must be part of a JSON list: {error}.") from error
        return None
    items = value if isinstance(value, list) else [value]
    return [_value_record(f"Item {number} of {path}", item) for number, item in enumerate(items, start=1)]


def _json_line(place: str, line: str) -> PromptRecord:
    try:
        value = parse_json(line, place)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} must be a JSON object, got {line[:N_QUOTED]!r}: {error}. Write one object a line.") from error
    return _value_record(place, value)


def _value_record(place: str, value: Any) -> PromptRecord:
    """The record of a JSON value: an object, a string as its prompt, or a list of messages."""
    check_value(value, place)
    if isinstance(value, str):
        return _record(place, {"prompt": value})
    if isinstance(value, list) and value and all(isinstance(each, dict) and "role" in each for each in value):
        return _record(place, {"messages": value})
    if not isinstance(value, dict):
        raise ValueError(
            f"{place} must be a JSON object, got {_quoted(value)}. A string, or a list of messages, will do too. A list of "
            "records is a file of its own that ends in .json."
        )
    return _record(place, value)


def _check_no_table(place: str, line: str) -> None:
    """Raise ValueError where the first line of a text file is that of a table."""
    cells = [cell.strip('"').lower() for cell in re.split("[,;\t]", line)]
    known = COLUMNS if len(cells) > 1 else {"prompt", "messages"}
    if known & set(cells) and all(re.fullmatch(r"[\w.-]{0,40}", cell) for cell in cells):
        raise ValueError(f"{place} must be a prompt, got {line!r}, which begins a table. Name the file .csv or .tsv.")


def _record(place: str, fields: Mapping[str, Any]) -> PromptRecord:
    return PromptRecord(place, fields, _quoted(fields))


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:N_QUOTED]
