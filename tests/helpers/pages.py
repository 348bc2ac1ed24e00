"""The pages that people read, and what stands in them: links, headings, code, commands, tables."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hf_alignbeam"
README, RESULTS = ROOT / "README.md", ROOT / "examples" / "results.md"
CONTRIBUTING, CHANGELOG = ROOT / ".github" / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.md"))
PAGES = [README, RESULTS, CONTRIBUTING, CHANGELOG, *GUIDES]


def name(page):
    """What a page is called in the name of a test."""
    return page.stem


def section(page, heading):
    """The text under a heading of the second level."""
    return re.split(r"^## ", page.read_text().partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.M)[0]


def blocks(page, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def without_blocks(page):
    """The text of a page outside its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def anchors(page):
    """What links to the headings of a page end in, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)", without_blocks(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    """The links of a page that stay in the repository: the path and the heading of each."""
    found = re.findall(r"\]\(([^)\s]+)\)", without_blocks(page))
    return [tuple(link.partition("#")[::2]) for link in found if "://" not in link]


def whole_commands(page):
    """The arguments of every `alignbeam` command in the shell blocks of a page, after the command's name."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    parts = [re.split(r"\balignbeam |-m hf_alignbeam ", part, maxsplit=1) for line in lines for part in line.split("&&")]
    return [shlex.split(part[1]) for part in parts if len(part) == 2 and not part[0].startswith(("pip ", "lm_eval "))]


def mentioned_commands(page):
    """The same of the commands, whole or not, that are mentioned in the text of a page."""
    found = re.findall(r"`(?:[^`]*&& )?alignbeam ([^`]+)`", without_blocks(page))
    return [shlex.split(each.replace("\n", " ")) for each in found]


def tables(text):
    """The tables in Markdown text, each as its rows of cells."""
    found, inside = [], False
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            found.append([*(found.pop() if inside else []), cells])
        inside = line.startswith("|")
    return found
