"""A flat folder holds the files that the loader follows: the package's own code, with only its imports changed."""

import ast
import re
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files

from hf_alignbeam.hub.flatten import closure, flat_name, flatten, source
from hf_alignbeam.hub.publish import ENTRIES, PROTECTED_ENTRY, PROTECTED_MODEL, write_protected, write_strategy
from hf_alignbeam.testbed.model_store import WEIGHTS

MODULES = [*(module for _, module in ENTRIES.values()), PROTECTED_ENTRY[1], PROTECTED_MODEL]
OWN_IMPORT = re.compile(r"^from (hf_alignbeam\.[\w.]+) import")


@pytest.mark.parametrize("entry", MODULES)
def test_flat_names_are_unique(entry):
    modules = closure(entry)
    assert entry in modules
    assert len({flat_name(module) for module in modules}) == len(modules)


@pytest.mark.parametrize("entry", MODULES)
def test_only_the_module_path_of_imports_differs(entry):
    for module in closure(entry):
        before, after = source(module).split("\n"), flatten(module).split("\n")
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            named = OWN_IMPORT.match(old)
            assert new == (old.replace(named[1], f".{flat_name(named[1])}", 1) if named else old)


@pytest.mark.parametrize("entry", MODULES)
def test_every_import_of_the_package_is_at_the_top_level_and_absolute(entry):
    """Flattening rewrites no other import, and the loader follows a relative one even in a docstring."""
    for module in closure(entry):
        tree = ast.parse(source(module))
        imports = [
            node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_alignbeam")
        ]
        assert all(node in tree.body and node.module != "hf_alignbeam" for node in imports)
        assert not re.search(r"^\s*(from \.|import hf_alignbeam)", source(module), re.M)


@pytest.mark.parametrize("entry", MODULES)
def test_a_folder_that_loads_judges_reads_their_tokenizers(entry):
    """Also those of mistral-common, which neither an anchor nor its target may have."""
    modules = closure(entry)
    assert ("hf_alignbeam.tokenization.mistral_backends" in modules) == ("hf_alignbeam.judges.llm_judge" in modules)


def followed(file):
    """The files that the loader copies for a file, itself included."""
    return {Path(each).name for each in get_relative_import_files(file)} | {file.name}


@pytest.mark.parametrize("strategy", ENTRIES)
def test_the_loader_follows_every_file_of_a_strategy(strategy, tmp_path):
    write_strategy(strategy, tmp_path / strategy)
    code = tmp_path / strategy / "custom_generate"
    assert followed(code / "generate.py") == {file.name for file in code.glob("*.py")}


def test_the_loader_follows_every_file_of_a_protected_model(tmp_path):
    named = {"anchor": str(WEIGHTS / "anchor"), "judge": str(WEIGHTS / "judge-lm")}
    write_protected(str(WEIGHTS / "specialist"), tmp_path / "made", named)
    for entry in (tmp_path / "made" / "custom_generate" / "generate.py", tmp_path / "made" / f"{flat_name(PROTECTED_MODEL)}.py"):
        assert followed(entry) == {file.name for file in entry.parent.glob("*.py")}


def test_the_folder_of_anchor_logits_is_short_enough_to_read(tmp_path):
    write_strategy("anchor-logits", tmp_path / "made")
    assert sum(len(file.read_text().splitlines()) for file in (tmp_path / "made").rglob("*.*")) <= 4_500
