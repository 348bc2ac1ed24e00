"""The settings page of the guides: every argument of the three guards and of a judge, its default and what it means.

Knows signatures and docstrings. Knows no model. `python -m hf_alignbeam.cli.settings_page` prints the page; with `--check` it
compares the page with `FILE`. Run it in the root of the repository.
"""

import inspect
import re
import sys
from pathlib import Path

from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.embedding_search.steerer import EmbeddingSteerer
from hf_alignbeam.hub.judge_loading import JudgeSettings
from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.steering.processor import AnchorLogitsProcessor

FILE = Path("examples", "guides", "settings.md")
#: Written into the default's cell of an argument that must be given.
REQUIRED = "required"
PAGE = """\
# Settings

`python -m hf_alignbeam.cli.settings_page` prints this page from the signatures and docstrings in the code. Change a default or an
explanation there, then write the page again. [How it works](how-it-works.md) explains the terms.
"""
#: What stands above the tables of these classes.
NOTES = {
    JudgeSettings: """\
What may be said of a judge beside its name. A recipe names these as they stand here; at the command line they begin with
`--judge-`, in a Hub folder's arguments and in a protected model with `judge_`.

""",
    GuardProfile: """\
The keys of a profile of your own, in YAML, JSON or Python.

""",
}


def page() -> str:
    """The whole page: for each class a heading and a table."""
    kinds = (AnchorLogitsProcessor, AlignBeam, EmbeddingSteerer, JudgeSettings, GuardProfile)
    return PAGE + "".join(f"\n## {kind.__name__}\n\n{NOTES.get(kind, '')}{table(kind)}" for kind in kinds)


def table(kind: type) -> str:
    """The arguments of a class as a Markdown table, in the order of its docstring.

    Raises:
        ValueError: The docstring and the signature do not name the same arguments.
    """
    parameters = inspect.signature(kind).parameters
    entries = explanations(inspect.getdoc(kind) or "")
    explained = [name for names, _ in entries for name in names]
    if sorted(explained) != sorted(parameters):
        differing = ", ".join(sorted({*explained} ^ {*parameters}))
        raise ValueError(f"The docstring of {kind.__name__} must explain each argument once, and does not for: {differing}.")
    rows = [
        f"| {', '.join(f'`{name}`' for name in names)} | {', '.join(_default(parameters[name]) for name in names)} | {text} |\n"
        for names, text in entries
    ]
    return "| argument | default | meaning |\n|---|---|---|\n" + "".join(rows)


def explanations(docstring: str) -> list[tuple[list[str], str]]:
    """The entries of a docstring's `Args:` or `Attributes:`: the names that share an entry, and its text on one line."""
    rest = re.split(r"\n(?:Args|Attributes):\n", docstring, maxsplit=1)[-1]
    section = re.split(r"^\S", rest, maxsplit=1, flags=re.M)[0]
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", section, re.M)
    return [(names.split(", "), " ".join(text.split()).replace("|", "\\|")) for names, text in entries]


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return REQUIRED
    if isinstance(parameter.default, str | tuple):
        return f"`{parameter.default!r}`".replace("'", '"')
    return "`{}`" if repr(parameter.default) == "<factory>" else f"`{parameter.default}`"


def main(arguments: list[str]) -> int:
    """Print the page, or compare it with the file.

    Returns:
        The exit status: 1 where the file is not the page.
    """
    if arguments == ["--check"]:
        if FILE.is_file() and FILE.read_text("utf-8") == page():
            return 0
        print(f"{FILE} is out of date: python -m hf_alignbeam.cli.settings_page > {FILE}", file=sys.stderr)
        return 1
    if arguments:
        print("usage: python -m hf_alignbeam.cli.settings_page [--check]", file=sys.stderr)
        return 2
    print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
