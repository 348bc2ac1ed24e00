"""Packages and their files import one way, and the core can be loaded as Hub code: what the layout promises about itself."""

import ast
import re
import statistics
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hf_alignbeam"
#: Each package imports only packages before it.
ORDER = [
    "versions",
    "presets",
    "console",
    "utils",
    "tokenization",
    "chat",
    "translation",
    "inference",
    "judges",
    "anchor",
    "steering",
    "embedding_search",
    "decoding",
    "hub",
    "build_cache",
    "testbed",
    "evaluation",
    "testbed_training",
    "benchmarks",
    "cli",
]
#: What a published folder may hold, whole packages but for the files named.
CORE = set(ORDER[: ORDER.index("hub") + 1]) - {"console"}
OUTSIDE_THE_CORE = ("judges.remote.", "hub.publish", "hub.flatten")
ALLOWED = {"torch", "transformers", "safetensors", "huggingface_hub"}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)
PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def path_of(module):
    return PACKAGE / (module.replace(".", "/") + ".py")


def imports(module):
    """What a module imports: of this package, dotted names without its own; of others, the names of their roots."""
    own, others = [], []
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [node.module]
            if PACKAGE.parent.joinpath(*node.module.split(".")).is_dir():
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            root, _, rest = name.partition(".")
            (own if root == "hf_alignbeam" else others).append(rest if root == "hf_alignbeam" else root)
    return own, others


def listed(package):
    """The files that a package's docstring names, in their order."""
    return re.findall(r"^\* `([\w/]+)`: .+", ast.get_docstring(ast.parse((package / "__init__.py").read_text())), re.M)


@pytest.mark.parametrize("module", MODULES)
def test_packages_import_one_way(module):
    package = module.split(".")[0]
    for name in imports(module)[0]:
        assert ORDER.index(name.split(".")[0]) <= ORDER.index(package), f"{module} imports {name}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_names_its_files_in_the_order_they_import_each_other(package):
    names = listed(package)
    assert sorted(names) == sorted(
        [path.stem for path in package.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
        + [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    )
    prefix = ".".join(package.relative_to(PACKAGE).parts)
    for place, name in enumerate(names):
        own = (
            [each.removeprefix(f"{prefix}.") for each in imports(f"{prefix}.{name}")[0] if each.startswith(f"{prefix}.")]
            if "/" not in name
            else []
        )
        assert {each.split(".")[0] for each in own} <= {each.rstrip("/") for each in names[:place]}, f"{prefix}.{name}"


@pytest.mark.parametrize(
    "module", [module for module in MODULES if module.split(".")[0] in CORE and not module.startswith(OUTSIDE_THE_CORE)]
)
def test_the_core_needs_nothing_but_transformers(module):
    own, others = imports(module)
    assert not [name for name in own if name.startswith(OUTSIDE_THE_CORE) or name.split(".")[0] not in CORE]
    assert not [name for name in others if name not in ALLOWED and name not in sys.stdlib_module_names]


def test_packages_and_modules_are_short():
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 5
    for package in PACKAGES:
        assert len(list(package.glob("*.py"))) <= 12, package
    lengths = {module: len(path_of(module).read_text().splitlines()) for module in MODULES}
    assert max(lengths.values()) <= 350, max(lengths, key=lengths.get)
    assert statistics.median(lengths.values()) <= 170


def test_test_files_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert max(lengths.values()) <= 500, max(lengths, key=lengths.get)


def test_the_project_lists_every_package():
    """A wheel holds no other; model cards lie beside the package in a checkout."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")]
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"hf_alignbeam.model_cards"}


@pytest.mark.parametrize("module", MODULES)
def test_text_files_are_utf_8_whatever_the_locale_is(module):
    calls = [each for each in ast.walk(ast.parse(path_of(module).read_text("utf-8"))) if isinstance(each, ast.Call)]
    named = [each for each in calls if isinstance(each.func, ast.Attribute) and each.func.attr in ("read_text", "write_text")]
    for call in named:
        assert "utf-8" in ast.unparse(call), f"{module}, line {call.lineno}"
