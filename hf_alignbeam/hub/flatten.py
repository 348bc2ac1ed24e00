"""Writes an entry and the modules it needs as the flat folder that transformers' loader reads.

Knows import statements and file names. Knows no strategy. The loader (transformers 5.23) searches a file's text for relative
imports and looks for each imported file in the same folder, so a published folder has no sub-folders.
"""

import ast
from pathlib import Path

PACKAGE = "hf_alignbeam"
_ROOT = Path(__file__).parents[1]


def closure(entry: str) -> list[str]:
    """The entry's module and every module of this package that it imports, directly or through others.

    Args:
        entry: The module's full dotted name.

    Returns:
        Full dotted names, sorted.
    """
    modules: set[str] = set()
    pending = [entry]
    while pending:
        module = pending.pop()
        if module not in modules:
            modules.add(module)
            pending += [imported for _, imported in _package_imports(source(module))]
    return sorted(modules)


def flat_name(module: str) -> str:
    """A module's name in a flat folder: `hf_alignbeam.steering.mixing` becomes `steering_mixing`."""
    return module.removeprefix(f"{PACKAGE}.").replace(".", "_")


def flatten(module: str) -> str:
    """A module's source for a flat folder: its imports from this package are relative, and no other character changes."""
    lines = source(module).split("\n")
    for line, imported in _package_imports(source(module)):
        lines[line - 1] = lines[line - 1].replace(f"from {imported} import", f"from .{flat_name(imported)} import", 1)
    return "\n".join(lines)


def write_flat(entry: str, folder: Path) -> None:
    """Write the closure of an entry's module into a folder.

    Args:
        entry: The module's full dotted name.
        folder: The folder, created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for module in closure(entry):
        (folder / f"{flat_name(module)}.py").write_text(flatten(module), "utf-8")


def source(module: str) -> str:
    """The source of a module of this package."""
    return (_ROOT / (module.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py")).read_text("utf-8")


def _package_imports(text: str) -> list[tuple[int, str]]:
    """The line and the module of each `from hf_alignbeam.x import` at the top level of a source."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return [(node.lineno, node.module) for node in nodes if node.module and node.module.startswith(f"{PACKAGE}.")]
