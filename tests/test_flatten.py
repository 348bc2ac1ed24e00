"""A flat folder is the package's own code: the files that the loader follows, and nothing but imports differs."""

import re
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files

from hf_alignbeam.hub.flatten import closure, flat_name, flatten, source
from hf_alignbeam.hub.publish import ENTRY, PROTECTED, write_protected, write_strategy
from hf_alignbeam.testbed.model_store import WEIGHTS

ENTRIES = [ENTRY, PROTECTED]
OWN_IMPORT = re.compile(r"^from (hf_alignbeam\.[\w.]+) import")


@pytest.mark.parametrize("entry", ENTRIES)
def test_flat_names_are_unique(entry):
    modules = closure(entry)
    assert entry in modules
    assert len({flat_name(module) for module in modules}) == len(modules)


@pytest.mark.parametrize("entry", ENTRIES)
def test_only_the_module_path_of_imports_differs(entry):
    for module in closure(entry):
        before, after = source(module).split("\n"), flatten(module).split("\n")
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            named = OWN_IMPORT.match(old)
            assert new == (old.replace(named[1], f".{flat_name(named[1])}", 1) if named else old)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_import_of_the_package_is_at_the_top_level(entry):
    for module in closure(entry):
        assert not re.search(r"^\s*(from \.|import hf_alignbeam|from hf_alignbeam import)", source(module), re.M)
        assert not re.search(r"^\s+from hf_alignbeam", source(module), re.M)


def test_the_loader_follows_every_file_that_is_written(tmp_path):
    write_strategy("alignbeam", tmp_path / "strategy")
    write_protected(
        str(WEIGHTS / "specialist"),
        tmp_path / "protected",
        {"anchor": str(WEIGHTS / "anchor"), "judge": str(WEIGHTS / "judge-lm")},
    )
    for code in (tmp_path / "strategy" / "custom_generate", tmp_path / "protected" / "custom_generate"):
        followed = {Path(file).name for file in get_relative_import_files(code / "generate.py")}
        assert followed == {file.name for file in code.glob("*.py")} - {"generate.py"}
    top = tmp_path / "protected"
    followed = {Path(file).name for file in get_relative_import_files(top / f"{flat_name(PROTECTED)}.py")}
    assert followed | {f"{flat_name(PROTECTED)}.py"} == {file.name for file in top.glob("*.py")}
