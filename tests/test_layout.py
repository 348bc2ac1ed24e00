"""Imports run one way, and the core can be loaded as Hub code: what the design promises about its own shape."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_alignbeam"
#: The core, each module importing only modules before it.
CORE = [
    "versions",
    "caching",
    "backend",
    "vocab",
    "spelling",
    "translate",
    "chat",
    "recovery",
    "adapters",
    "engines",
    "anchor",
    "belief",
    "summation",
    "follow",
    "calls",
    "loops",
    "mixing",
    "streaming",
    "starts",
    "steering",
    "processor",
    "growing",
    "judge",
    "asking",
    "target",
    "trace",
    "writing",
    "candidates",
    "policy",
    "refusal",
    "choosing",
    "decode",
    "plausible",
    "loading",
    "embedding",
    "prefix",
    "settled",
    "search",
    "probing",
    "journal",
    "pushing",
    "steered",
    "walk",
    "rounds",
    "steer",
    "doors",
    "protected",
]
ALLOWED = {"torch", "transformers", "safetensors", "huggingface_hub"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_one_way(name):
    for level, module in imports(PACKAGE / f"{name}.py"):
        if level:
            assert level == 1
            assert module in CORE[: CORE.index(name)]
        else:
            root = module.split(".")[0]
            assert root in ALLOWED or root in sys.stdlib_module_names


def test_the_core_is_the_flat_modules():
    flat = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "cli", "moderation", "publish"}
    assert flat == set(CORE)


@pytest.mark.parametrize("name", CORE)
def test_no_text_line_looks_like_a_relative_import(name):
    """The Hub loader follows such lines even inside a docstring."""
    path = PACKAGE / f"{name}.py"
    real = {module for level, module in imports(path) if level}
    found = {line.split()[1].removeprefix(".") for line in path.read_text().splitlines() if line.lstrip().startswith("from .")}
    assert found == real
