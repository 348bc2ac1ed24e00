"""Tables in Markdown."""

from collections.abc import Sequence


def table_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def table_head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [table_row(columns), "|---" * len(columns) + "|"]
