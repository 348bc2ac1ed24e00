"""Where prompts come from, and which of them are kept: one entry of a recipe. Reads no prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hf_alignbeam.evaluation.files.local_copies import local_prompts

#: The prefixes of the testbed's models, judges and prompts, and of data sets on the Hub.
TESTBED = "testbed:"
HUB = "hub:"
#: No value is converted to another type, and unknown keys are errors.
STRICT = ConfigDict(strict=True, extra="forbid")

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class PromptSpec:
    """A source of prompts.

    Attributes:
        source: A file, `hub:` and the id of a data set, or `testbed:` and a kind of prompt.
        name: The name in the tables; by default the last part of the source.
        file: Its file in `prompts` in the folder of `HF_ALIGNBEAM_TEST_DATA`, read instead where that is set.
        limit, where: Keep so many prompts at most; keep only rows with these values, by column.
        file_where: More such values, for `file` alone, whose columns may be other ones than the Hub's.
        max_chars: Keep only prompts of so many characters at most, as one long prompt pads a whole batch.
        rows, seed: Keep only `odd` or `even` rows, from 1; draw their order by a seed.
        split, config, revision, options: For a data set on the Hub; `options` are further arguments of `load_dataset`. The
            testbed uses `split` alone.
        prompt, answer: The columns of the prompt and of its right answer, for an unknown layout.
        harmful: True, False, or a mapping with a `column` and the `values` that mean harm. By default, as the layout says.
    """

    source: str
    name: str = ""
    file: str | None = None
    limit: Positive | None = None
    where: Mapping[str, Any] | None = None
    file_where: Mapping[str, Any] | None = None
    max_chars: Positive | None = None
    rows: Literal["odd", "even"] | None = None
    seed: int | None = None
    split: str = "test"
    config: str | None = None
    revision: str | None = None
    options: Mapping[str, Any] | None = None
    prompt: str | None = None
    answer: str | None = None
    harmful: bool | Mapping[str, Any] | None = None

    @property
    def path(self) -> Path | None:
        """The file to read; None for the Hub and the testbed."""
        return local_prompts(self.file) or (None if self.source.startswith((HUB, TESTBED)) else Path(self.source))

    @property
    def kept(self) -> dict[str, Any]:
        """The values that a row must have, by column."""
        return {**(self.where or {}), **((self.file_where or {}) if local_prompts(self.file) else {})}

    def __post_init__(self) -> None:
        if isinstance(self.harmful, Mapping) and not (
            set(self.harmful) == {"column", "values"} and isinstance(self.harmful["values"], list)
        ):
            raise ValueError(f"`harmful` must be true, false or have a `column` and a list `values`, got {dict(self.harmful)}.")
