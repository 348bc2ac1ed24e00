"""The Space: what its panels say without a page, and the page itself in a browser."""

import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
import yaml
from answers import guarded, load_models, plain
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from panels import panel, side_by_side
from test_decode import Noted, failing

from hf_alignbeam import testbed
from hf_alignbeam.decode import THRESHOLD
from hf_alignbeam.refusal import REFUSAL
from hf_alignbeam.testbed.store import stored_language
from hf_alignbeam.testbed.truth import Truth

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "examples" / "space"
HARMFUL, HARMLESS = ("harmful", "prefill", "late"), ("domain", "general", "borderline")
DEFAULTS = (0.7, 3, THRESHOLD)


@pytest.fixture(scope="module")
def truth():
    return Truth(stored_language())


@pytest.fixture(scope="module")
def models(truth):
    weights = [str(testbed.WEIGHTS / name) for name in ("specialist", "anchor", "judge-lm")]
    return load_models(*weights, refuses=truth.refusal)


def prompts(*kinds, n=1):
    return [prompt for kind in kinds for prompt in testbed.prompts("test", kind)[:n]]


def last(said):
    return list(said)[-1]


def shown(html):
    """The words of a panel."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_the_plain_side_harms_and_the_guarded_side_refuses(models, truth):
    for prompt in prompts(*HARMFUL):
        alone, under_guard = last(plain(models, prompt.conversation)), last(guarded(models, prompt.conversation))
        assert truth.harm(alone.text) > 0.0
        assert not alone.refused
        assert truth.harm(under_guard.text) == 0.0
        assert under_guard.refused
        assert under_guard.text.startswith(prompt.prefill)


def test_a_harmless_answer_is_the_plain_one_and_nothing_moved_it(models, truth):
    for prompt in prompts(*HARMLESS):
        alone, under_guard = last(plain(models, prompt.conversation)), last(guarded(models, prompt.conversation))
        assert under_guard.runs == alone.runs
        assert not under_guard.refused
        assert truth.correct(prompt, under_guard.text)
        assert under_guard.cost.anchor_forwards == 0
        assert under_guard.cost.target_forwards == alone.cost.target_forwards


def test_both_sides_come_in_parts(models):
    (prompt,) = prompts("late")
    for parts in (plain(models, prompt.conversation), guarded(models, prompt.conversation, threshold=1.0)):
        *coming, whole = parts
        assert len({said.text for said in coming}) > 1
        assert all(whole.text.startswith(said.text) and said.refused is None and said.cost is None for said in coming)


def test_no_word_comes_before_the_judge_has_passed_it(models):
    for prompt in prompts(*HARMFUL, *HARMLESS):
        noted = Noted(models.judge)
        passed = {prompt.prefill}
        for said in guarded(replace(models, judge=noted), prompt.conversation):
            passed |= {text for call in noted.calls for _, text, harm in call if harm <= THRESHOLD}
            assert said.text in passed


def broken(conversations, responses):
    raise OSError("the judge is gone")


@pytest.mark.parametrize("judge", [failing, broken, lambda c, r: torch.full((len(r),), torch.nan)])
def test_a_judge_that_fails_lets_no_word_out(judge, models):
    for prompt in prompts("harmful", "domain"):
        said = list(guarded(replace(models, judge=judge), prompt.conversation))
        assert all(REFUSAL.startswith(part.text) for part in said)
        assert said[-1].text == REFUSAL
        assert said[-1].refused


def test_what_did_not_pass_is_not_shown(models):
    for prompt in prompts(*HARMFUL):
        noted = Noted(models.judge)
        *_, (_, right) = side_by_side(replace(models, judge=noted), prompt.text, prompt.prefill, *DEFAULTS)
        flagged = {text for call in noted.calls for _, text, harm in call if harm > THRESHOLD}
        assert flagged
        assert not any(text in shown(right) for text in flagged)


def test_a_threshold_of_one_refuses_nothing(models):
    for prompt in prompts(*HARMFUL):
        alone, under_guard = last(plain(models, prompt.conversation)), last(guarded(models, prompt.conversation, threshold=1.0))
        assert under_guard.runs == alone.runs
        assert not under_guard.refused


def test_settings_reach_the_strategy(models):
    (prompt,) = prompts("harmful")
    one, five = (last(guarded(models, prompt.conversation, num_candidates=k)).explanation for k in (1, 5))
    assert [len(explanation.sent_back[0].candidates) for explanation in (one, five)] == [1, 5]
    weak, strong = (last(guarded(models, prompt.conversation, alpha=alpha)).explanation for alpha in (0.05, 1.0))
    assert weak.sent_back[0].candidates[0].tokens[0].kl < strong.sent_back[0].candidates[0].tokens[0].kl


def test_a_token_is_marked_as_far_as_it_was_moved(models):
    for prompt in prompts(*HARMFUL):
        said = last(guarded(models, prompt.conversation))
        moved = [(text.strip(), nats) for text, nats in said.runs if nats is not None and text.strip()]
        tips = r'data-tip="([\d.]+) nats" style="--share: ([\d.]+)">([^<]*)</mark>'
        marks = [(unescape(word), float(tip), float(share)) for tip, share, word in re.findall(tips, panel("", said))]
        most = said.explanation.most
        assert moved
        assert marks == [(text, round(nats, 2), pytest.approx(nats / most, abs=1e-3)) for text, nats in moved]


def test_the_panel_says_what_the_judge_read_and_what_it_cost(models):
    for prompt in prompts(*HARMFUL, *HARMLESS):
        noted = Noted(models.judge)
        said = last(guarded(replace(models, judge=noted), prompt.conversation))
        words = shown(panel("Guarded", said))
        read = [harm for call in noted.calls for _, _, harm in call]
        assert len(re.findall(r"<tr class=", panel("", said))) == len(read) == said.cost.judged
        assert sorted(f"{harm:.3f}" for harm in read) == sorted(re.findall(r" ([01]\.\d{3}) [✓✕]", words))
        cost = said.cost
        assert (
            f"target forwards {cost.target_forwards} anchor forwards {cost.anchor_forwards} judge calls {cost.judge_calls}"
            in words
        )
        assert ("✕ refuses" in words) == said.refused


def test_every_text_is_escaped(models):
    odd = "<script>alert(1)</script> &amp; \"' {{value}} ${1+1}"
    said = last(guarded(replace(models, judge=failing), [{"role": "user", "content": odd}], refusal=odd))
    said = replace(said, begun=odd, runs=[*said.runs, (odd, 1.0)])
    html = panel("Guarded", said)
    assert "<script" not in html
    assert shown(html).count(odd) == 3
    assert html.count("<") == len(re.findall(r"</?(?:section|h2|p|i|mark|span|table|tr|th|td|dl|div|dt|dd)[ >]", html))


def test_characters_of_several_tokens_stand_whole(models):
    refusal = "Désolé, 不行 🙂."
    *_, said = guarded(replace(models, judge=failing), [{"role": "user", "content": "?"}], refusal=refusal)
    assert said.text == refusal
    assert len(said.runs) < len(said.explanation.tokens) - 1


def test_two_at_once_get_what_each_gets_alone(models):
    asked = [(prompt.conversation, {"alpha": alpha}) for prompt in prompts("late", "domain") for alpha in (0.3, 0.7)]

    def answered(one):
        said = last(guarded(models, one[0], **one[1]))
        return said.text, replace(said.cost, seconds=0.0), said.explanation

    alone = [answered(one) for one in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        assert list(threads.map(answered, asked)) == alone
    assert len({str(cost) for _, cost, _ in alone}) > 1


BAD = {
    "nothing": ((" ", "", *DEFAULTS), "The prompt is empty. Type a question, or take one of the examples."),
    "too much": (("a " * 400, "", *DEFAULTS), "The prompt has 405 tokens, and the model takes 256. Shorten it."),
    "alpha": (("?", "", 0.0, 3, 0.5), "`alpha` and `n_steps` must be above 0 for candidates to differ, got 0.0 and 20."),
    "num_candidates": (("?", "", 0.7, 0, 0.5), "`num_candidates` must be at least 1, got 0."),
    "threshold": (("?", "", 0.7, 3, 7.0), "`threshold` must be in [0, 1], got 7.0."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_a_sentence(case, models):
    asked, sentence = BAD[case]
    *_, (_, right) = side_by_side(models, *asked)
    assert sentence in shown(right)
    assert 'role="alert"' in right


def test_an_error_ends_the_stream(models):
    endless = [{"role": "user", "content": "a " * 600}]
    with pytest.raises(ValueError, match="context"):
        list(guarded(replace(models, judge=failing), endless))


def test_the_hub_is_told_what_is_installed():
    _, front, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    settings = yaml.safe_load(front)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert settings["sdk"] == "gradio"
    assert f"gradio=={settings['sdk_version']}" in (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    assert settings["python_version"] in SpecifierSet(project["requires-python"])
    assert (SPACE / settings["app_file"]).is_file()
    requirement = Requirement((SPACE / "requirements.txt").read_text().strip())
    assert (requirement.name, str(requirement.specifier)) == (project["name"], f"=={project['version']}")
