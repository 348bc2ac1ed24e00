"""With an old torch or transformers, the package and the folders it publishes raise one clear sentence."""

import re
import tomllib
from pathlib import Path

import pytest
from helpers.variety import mostly_slow

from hf_alignbeam import versions
from hf_alignbeam.hub.publish import write_protected, write_strategy
from hf_alignbeam.testbed.model_store import WEIGHTS

ROOT = Path(__file__).parents[2]
RELEASES = [("transformers", "5.17.2"), ("transformers", "4.57.6"), ("torch", "2.5.1+cpu")]
#: Ways to load our code, after the metadata of another release.
WAYS = {
    "package": "from hf_alignbeam import AlignBeam",
    "command": "import hf_alignbeam.__main__",
    "strategy": "GenerationMixin().load_custom_generate(place + '/strategy', trust_remote_code=True)",
    "protected": "AutoModelForCausalLM.from_pretrained(place + '/protected', trust_remote_code=True)",
}
RUN = """
import sys
from transformers import AutoModelForCausalLM, GenerationMixin
place, ours, theirs, way = sys.argv[1:]
sys.path[:0] = [theirs, ours]
exec(way)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A published strategy, and a protected model."""
    made = tmp_path_factory.mktemp("hub")
    write_strategy("alignbeam", made / "strategy")
    write_protected(
        str(WEIGHTS / "specialist"), made / "protected", {"anchor": str(WEIGHTS / "anchor"), "judge": str(WEIGHTS / "judge-lm")}
    )
    return made


def pretend(folder, package, release):
    """Write metadata as if a release were installed."""
    about = folder / f"{package}-{release}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {release}\n")


@pytest.mark.parametrize(
    ("package", "release", "way"),
    mostly_slow(
        [(*release, way) for release in RELEASES for way in WAYS],
        [*((*RELEASES[0], way) for way in WAYS), *((*release, "strategy") for release in RELEASES[1:])],
    ),
)
def test_an_old_release_is_refused_in_one_sentence(package, release, way, place, in_a_process, tmp_path):
    pretend(tmp_path, package, release)
    done = in_a_process(RUN, place, ROOT, tmp_path, WAYS[way])
    bound = f"{package}>={versions.OLDEST[package]}"
    assert done.returncode == 1
    ours = f"ImportError: `{package}` must be at least {versions.OLDEST[package]} for hf_alignbeam, got {release}. "
    theirs = f'{bound}  # pip install -U "{bound}" (installed: {release})'  # of a folder's requirements.txt
    expected = theirs if way == "strategy" else f'{ours}Upgrade it with `pip install -U "{bound}"`.'
    assert done.stderr.splitlines()[-1] == expected


@pytest.mark.parametrize("release", mostly_slow(["5.18.0", "5.19.0.dev0", "5.100.1", "6.0.0rc1"], ("5.18.0", "6.0.0rc1")))
def test_the_oldest_release_and_newer_ones_are_accepted(release, place, in_a_process, tmp_path):
    pretend(tmp_path, "transformers", release)
    for way in WAYS.values():
        assert in_a_process(RUN, place, ROOT, tmp_path, way).returncode == 0


def test_the_bounds_are_those_of_the_project():
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {f"{package}>={oldest}" for package, oldest in versions.OLDEST.items()} <= set(bounds)


def test_ci_can_install_every_lower_bound():
    """CI turns `>=` into `==`, so a bound must be a plain release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = project["dependencies"] + [bound for extra in project["optional-dependencies"].values() for bound in extra]
    assert all(re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", bound) for bound in bounds if "[" not in bound)
