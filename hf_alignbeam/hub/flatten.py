"""One Hub entry and the modules behind it, as the flat folder that transformers' loader reads.

Knows import statements and file names, and no strategy. The loader (transformers 5.23) takes each relative import from a file's
text and looks for a file of that name beside it, so a published folder has no sub-folders.
"""

import ast
from pathlib import Path

PACKAGE = "hf_alignbeam"
_ROOT = Path(__file__).parents[1]


def closure(entry: str) -> list[str]:
    """Every module of this package that a module needs, itself included.

    Args:
        entry: A module's full dotted name.

    Returns:
        Full dotted names, sorted.
    """
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += [needed for _, needed in _own_imports(source(module))]
    return sorted(found)


def flat_name(module: str) -> str:
    """The module's name in a flat folder: `hf_alignbeam.steering.mixing` becomes `steering_mixing`."""
    return module.removeprefix(f"{PACKAGE}.").replace(".", "_")


def flatten(module: str) -> str:
    """A module's source for a flat folder: its imports from this package are relative, and no other character changes."""
    lines = source(module).split("\n")
    for line, needed in _own_imports(source(module)):
        lines[line - 1] = lines[line - 1].replace(f"from {needed} import", f"from .{flat_name(needed)} import", 1)
    return "\n".join(lines)


def write_flat(entry: str, folder: Path) -> None:
    """Write the closure of a module into a folder.

    Args:
        entry: The module's full dotted name.
        folder: Where to; made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for module in closure(entry):
        (folder / f"{flat_name(module)}.py").write_text(flatten(module))


def source(module: str) -> str:
    """The text of a module of this package."""
    return (_ROOT / (module.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py")).read_text()


def _own_imports(text: str) -> list[tuple[int, str]]:
    """The line and the module of each `from hf_alignbeam.x import` at the top level of a source."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return [(node.lineno, node.module) for node in nodes if node.module and node.module.startswith(f"{PACKAGE}.")]
