"""An installed wheel holds exactly the files of the checkout's package and model cards."""

from importlib.metadata import distribution
from pathlib import Path

import pytest

import hf_alignbeam

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    ROOT in Path(hf_alignbeam.__file__).parents, reason="hf_alignbeam is not installed from a wheel, as `.ci/run` does"
)


@pytest.fixture
def files():
    """All installed files, relative to site-packages."""
    return {Path(file) for file in distribution("hf-alignbeam").files if file.suffix != ".pyc"}


def test_the_wheel_holds_the_package_and_the_cards(files):
    package = {file.relative_to(ROOT) for file in (ROOT / "hf_alignbeam").rglob("*") if file.is_file()}
    cards = {Path("hf_alignbeam") / file.relative_to(ROOT) for file in (ROOT / "model_cards").iterdir()}
    expected = {file for file in package | cards if file.suffix != ".pyc"}
    assert {Path("hf_alignbeam/py.typed"), Path("hf_alignbeam/testbed/weights/anchor/model.safetensors")} <= expected
    assert {file for file in files if file.parts[0] == "hf_alignbeam"} == expected


def test_the_wheel_holds_nothing_else(files):
    others = {file for file in files if file.parts[0] != "hf_alignbeam"}
    assert {file.name for file in others if not file.parts[0].endswith(".dist-info")} == {"alignbeam"}
    assert "LICENSE" in {file.name for file in others}
