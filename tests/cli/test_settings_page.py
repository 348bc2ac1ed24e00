"""The settings page is made from signatures and docstrings, and is what lies in the guides."""

import inspect
import re

import pytest
from helpers.pages import ROOT, tables

from hf_alignbeam import AlignBeam, AnchorLogitsProcessor, EmbeddingSteerer
from hf_alignbeam.cli import settings_page
from hf_alignbeam.hub.judge_loading import JudgeSettings
from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.presets import PAPER, PROCESSOR, TSA

CLASSES = [AnchorLogitsProcessor, AlignBeam, EmbeddingSteerer, JudgeSettings, GuardProfile]


def test_the_page_in_the_guides_is_what_the_command_prints(capsys, monkeypatch):
    """Where this fails: python -m hf_alignbeam.cli.settings_page > examples/guides/settings.md"""
    monkeypatch.chdir(ROOT)
    assert settings_page.main([]) == 0
    assert capsys.readouterr().out == settings_page.FILE.read_text()
    assert settings_page.main(["--check"]) == 0


def test_a_page_that_is_out_of_date_or_missing_is_an_error(tmp_path, monkeypatch, capsys):
    old = tmp_path / "settings.md"
    monkeypatch.setattr(settings_page, "FILE", old)
    assert settings_page.main(["--check"]) == 1
    old.write_text(settings_page.page().replace("0.7", "0.6"))
    assert settings_page.main(["--check"]) == 1
    assert "settings.md is out of date" in capsys.readouterr().err
    assert settings_page.main(["--chekc"]) == 2
    assert capsys.readouterr().err.startswith("usage:")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_argument_stands_in_one_row_with_its_default(kind):
    (rows,) = tables(settings_page.table(kind))
    shown = {}
    for names, defaults, meaning in rows[2:]:
        assert meaning.endswith(".")
        some, each = re.findall(r"`(\w+)`", names), re.findall(r"`(.*?)`|required", defaults)
        assert len(some) == len(each)
        shown |= dict(zip(some, each, strict=True))
    parameters = inspect.signature(kind).parameters
    assert sorted(shown) == sorted(parameters)
    for name, parameter in parameters.items():
        is_required = parameter.default is inspect.Parameter.empty
        assert (shown[name] == "") == is_required
        default = {} if repr(parameter.default) == "<factory>" else parameter.default  # of a dataclass
        assert is_required or eval(shown[name]) == default


def test_the_strategy_steers_with_the_defaults_of_the_processor():
    processor, strategy = (inspect.signature(kind).parameters for kind in (AnchorLogitsProcessor, AlignBeam))
    shared = set(processor) & set(strategy)
    assert {"alpha", "n_steps", "n_watch", "mixing", "translation", "n_lookahead", "template"} <= shared
    assert all(processor[name].default == strategy[name].default for name in shared)


@pytest.mark.parametrize(
    ("kind", "preset"),
    [(AlignBeam, PAPER), (EmbeddingSteerer, TSA), *((AnchorLogitsProcessor, each) for each in PROCESSOR.values())],
)
def test_presets_hold_arguments_that_the_page_explains(kind, preset):
    explained = {name for names, _ in settings_page.explanations(inspect.getdoc(kind)) for name in names}
    assert set(preset) <= explained


def test_an_argument_without_an_explanation_is_an_error():
    class Guard:
        """Guards.

        Args:
            alpha: The share,
                of a `|` in a table.
            gone: Not an argument.

        Raises:
            ValueError: never.
        """

        def __init__(self, alpha=0.5, beta=1):
            pass

    assert settings_page.explanations(inspect.getdoc(Guard))[0] == (["alpha"], "The share, of a `\\|` in a table.")
    with pytest.raises(
        ValueError, match=r"^The docstring of Guard must explain each argument once, and does not for: beta, gone\.$"
    ):
        settings_page.table(Guard)
