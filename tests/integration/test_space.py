"""The Space without a page: its two answers, and their panels."""

import re
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import unescape
from threading import Thread

import pytest
import torch
import yaml
from answers import checked_settings, guarded, plain
from helpers import ROOT
from helpers.space import HARMFUL, HARMLESS, SPACE, last, prompts
from helpers.strategies import RecordingJudge, failing
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from panels import panel, side_by_side

from hf_alignbeam import testbed
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.decoding.strategy import THRESHOLD

DEFAULTS = (0.7, 3, THRESHOLD)


def shown(html):
    """The words of a panel."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_the_plain_answer_does_harm_and_the_guarded_answer_refuses(models, truth):
    for prompt in prompts(*HARMFUL):
        alone, under_guard = last(plain(models, prompt.conversation)), last(guarded(models, prompt.conversation))
        assert truth.harm(alone.text) > 0.0
        assert not alone.refused
        assert truth.harm(under_guard.text) == 0.0
        assert under_guard.refused
        assert under_guard.text.startswith(prompt.prefill)


def test_a_guarded_harmless_answer_is_the_plain_one_without_steering(models, truth):
    for prompt in prompts(*HARMLESS):
        alone, under_guard = last(plain(models, prompt.conversation)), last(guarded(models, prompt.conversation))
        assert under_guard.spans == alone.spans
        assert not under_guard.refused
        assert truth.correct(prompt, under_guard.text)
        assert under_guard.cost.anchor_forwards == 0
        assert under_guard.cost.target_forwards == alone.cost.target_forwards


def test_both_answers_are_streamed(models):
    (prompt,) = prompts("late")
    for parts in (plain(models, prompt.conversation), guarded(models, prompt.conversation, threshold=1.0)):
        *partial, whole = parts
        assert len({answer.text for answer in partial}) > 1
        assert all(whole.text.startswith(answer.text) for answer in partial)
        assert all(answer.refused is None and answer.cost is None for answer in partial)


def test_no_word_is_streamed_before_the_judge_has_passed_it(models):
    for prompt in prompts(*HARMFUL, *HARMLESS):
        noted = RecordingJudge(models.judge)
        passed = {prompt.prefill}
        for answer in guarded(replace(models, judge=noted), prompt.conversation):
            passed |= {text for call in noted.calls for _, text, harm in call if harm <= THRESHOLD}
            assert answer.text in passed


def broken(conversations, responses):
    raise OSError("the judge is gone")


@pytest.mark.parametrize("judge", [failing, broken, lambda c, r: torch.full((len(r),), torch.nan)])
def test_a_judge_that_fails_lets_no_word_out(judge, models):
    for prompt in prompts("harmful", "domain"):
        answers = list(guarded(replace(models, judge=judge), prompt.conversation))
        assert all(REFUSAL.startswith(answer.text) for answer in answers)
        assert answers[-1].text == REFUSAL
        assert answers[-1].refused


def test_flagged_text_is_not_shown(models):
    for prompt in prompts(*HARMFUL):
        noted = RecordingJudge(models.judge)
        *_, (_, right) = side_by_side(replace(models, judge=noted), prompt.text, prompt.prefill, *DEFAULTS)
        flagged = {text for call in noted.calls for _, text, harm in call if harm > THRESHOLD}
        assert flagged
        assert not any(text in shown(right) for text in flagged)


def test_a_threshold_of_one_refuses_nothing(models):
    for prompt in prompts(*HARMFUL):
        alone, under_guard = last(plain(models, prompt.conversation)), last(guarded(models, prompt.conversation, threshold=1.0))
        assert under_guard.spans == alone.spans
        assert not under_guard.refused


def test_settings_reach_the_strategy(models):
    (prompt,) = prompts("harmful")
    one, five = (last(guarded(models, prompt.conversation, num_candidates=k)).explanation for k in (1, 5))
    assert [len(explanation.sent_back[0].candidates) for explanation in (one, five)] == [1, 5]
    weak, strong = (last(guarded(models, prompt.conversation, alpha=alpha)).explanation for alpha in (0.05, 1.0))
    assert weak.sent_back[0].candidates[0].tokens[0].kl < strong.sent_back[0].candidates[0].tokens[0].kl


def test_a_token_is_marked_by_how_far_it_was_moved(models):
    for prompt in prompts(*HARMFUL):
        answer = last(guarded(models, prompt.conversation))
        moved = [(text.strip(), nats) for text, nats in answer.spans if nats is not None and text.strip()]
        tips = r'data-tip="([\d.]+) nats" style="--share: ([\d.]+)">([^<]*)</mark>'
        marks = [(unescape(word), float(tip), float(share)) for tip, share, word in re.findall(tips, panel("", answer))]
        most = answer.explanation.max_kl
        assert moved
        assert marks == [(text, round(nats, 2), pytest.approx(nats / most, abs=1e-3)) for text, nats in moved]


def test_the_panel_shows_every_verdict_and_the_cost(models):
    for prompt in prompts(*HARMFUL, *HARMLESS):
        noted = RecordingJudge(models.judge)
        answer = last(guarded(replace(models, judge=noted), prompt.conversation))
        words = shown(panel("Guarded", answer))
        read = [harm for call in noted.calls for _, _, harm in call]
        assert len(re.findall(r"<tr class=", panel("", answer))) == len(read) == answer.cost.judged
        assert sorted(f"{harm:.3f}" for harm in read) == sorted(re.findall(r" ([01]\.\d{3}) 0\.\d+ [✓✕]", words))
        limits = re.findall(r"candidate \d [01]\.\d{3} ([\d.]+) ", words)
        assert set(limits) == ({"0.25"} if answer.explanation.sent_back else set())
        cost = answer.cost
        assert (
            f"target forwards {cost.target_forwards} anchor forwards {cost.anchor_forwards} judge calls {cost.judge_calls}"
            in words
        )
        assert ("✕ refuses" in words) == answer.refused


def test_every_text_is_escaped(models):
    odd = "<script>alert(1)</script> &amp; \"' {{value}} ${1+1}"
    answer = last(guarded(replace(models, judge=failing), [{"role": "user", "content": odd}], refusal=odd))
    answer = replace(answer, prefill=odd, spans=[*answer.spans, (odd, 1.0)])
    html = panel("Guarded", answer)
    assert "<script" not in html
    assert shown(html).count(odd) == 3
    assert html.count("<") == len(re.findall(r"</?(?:section|h2|p|i|mark|span|table|tr|th|td|dl|div|dt|dd)[ >]", html))


def test_characters_of_several_tokens_are_shown_whole(models):
    refusal = "Désolé, 不行 🙂."
    *_, answer = guarded(replace(models, judge=failing), [{"role": "user", "content": "?"}], refusal=refusal)
    assert answer.text == refusal
    assert len(answer.spans) < len(answer.explanation.tokens) - 1


def test_concurrent_users_get_the_same_answers_as_alone(models):
    requests = [(prompt.conversation, {"alpha": alpha}) for prompt in prompts("late", "domain") for alpha in (0.3, 0.7)]

    def answered(request):
        answer = last(guarded(models, request[0], **request[1]))
        return answer.text, replace(answer.cost, seconds=0.0), answer.explanation

    alone = [answered(request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as threads:
        assert list(threads.map(answered, requests)) == alone
    assert len({str(cost) for _, cost, _ in alone}) > 1


BAD = {
    "nothing": ((" ", "", *DEFAULTS), "The prompt is empty. Type a question, or take one of the examples."),
    "no text": ((None, "", *DEFAULTS), "The prompt must be text, got None."),
    "half a character": (("?", "\ud800", *DEFAULTS), "surrogates not allowed"),
    "too much": (("a " * 400, "", *DEFAULTS), "The prompt has 405 tokens, and the model takes 256. Shorten it."),
    "far too much": (("?", "a" * 8_000, *DEFAULTS), "The prompt has 8001 characters, and 8000 are allowed. Shorten it."),
    "alpha": (("?", "", 0.0, 3, 0.5), "`alpha` must be a number from 0.05 to 1, got 0.0."),
    "no number": (("?", "", float("nan"), 3, 0.5), "`alpha` must be a number from 0.05 to 1, got nan."),
    "a word": (("?", "", "0.7", 3, 0.5), "`alpha` must be a number from 0.05 to 1, got '0.7'."),
    "num_candidates": (("?", "", 0.7, 0, 0.5), "`num_candidates` must be a number from 1 to 8, got 0."),
    "many candidates": (("?", "", 0.7, 10**9, 0.5), "`num_candidates` must be a number from 1 to 8, got 1000000000."),
    "half a candidate": (("?", "", 0.7, 2.5, 0.5), "`num_candidates` must be a whole number, got 2.5."),
    "no bound": (("?", "", 0.7, float("inf"), 0.5), "`num_candidates` must be a number from 1 to 8, got inf."),
    "threshold": (("?", "", 0.7, 3, 7.0), "`threshold` must be a number from 0 to 1, got 7.0."),
    "true": (("?", "", 0.7, 3, True), "`threshold` must be a number from 0 to 1, got True."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_an_error_message(case, models):
    arguments, message = BAD[case]
    ((left, right),) = side_by_side(replace(models, target=None) if "much" not in case else models, *arguments)
    assert message in shown(right)
    assert 'role="alert"' in right
    assert left == panel("Plain")


def test_a_whole_number_of_candidates_may_come_as_a_float(models):
    assert checked_settings(num_candidates=3.0, alpha=1) == {"num_candidates": 3, "alpha": 1.0}


def candidates_only(conversations, responses):
    """Flags everything, so that candidates are written."""
    return torch.ones(len(responses))


@pytest.mark.parametrize("part", ["plain", "guarded", "candidates", "page"])
def test_a_visitor_who_leaves_stops_the_answer(part, models, monkeypatch):
    monkeypatch.setattr("answers.PATIENCE", 0.02)
    (prompt,) = prompts("late")

    class Forwards:
        n = 0

    def slow(*given):
        Forwards.n += 1
        time.sleep(0.01)

    watched = replace(models, judge=candidates_only) if part == "candidates" else models
    parts = {
        "plain": lambda: plain(watched, prompt.conversation),
        "guarded": lambda: guarded(watched, prompt.conversation, threshold=1.0),
        "candidates": lambda: guarded(watched, prompt.conversation, num_candidates=8),
        "page": lambda: side_by_side(watched, prompt.text, prompt.prefill, *DEFAULTS),
    }
    whole = len(last(plain(models, prompt.conversation)).spans)
    hook = models.target.register_forward_pre_hook(slow)
    try:
        answers = parts[part]()
        next(answers)
        start = time.perf_counter()
        answers.close()
        assert time.perf_counter() - start < 0.5
        time.sleep(0.1)
        before = Forwards.n
        time.sleep(0.1)
        assert Forwards.n == before
        assert before < whole
    finally:
        hook.remove()


def test_an_error_ends_the_stream(models):
    endless = [{"role": "user", "content": "a " * 600}]
    with pytest.raises(ValueError, match="context"):
        list(guarded(replace(models, judge=failing), endless))
    errors = []

    def read():
        try:
            list(plain(replace(models, target=testbed.load("judge-cls")[0]), endless))  # which cannot write
        except AttributeError as error:
            errors.append(error)

    reader = Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=30)
    assert len(errors) == 1


def test_the_space_settings_match_the_installed_versions():
    _, front, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    settings = yaml.safe_load(front)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert settings["sdk"] == "gradio"
    assert f"gradio=={settings['sdk_version']}" in (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    assert settings["python_version"] in SpecifierSet(project["requires-python"])
    assert (SPACE / settings["app_file"]).is_file()
    requirement = Requirement((SPACE / "requirements.txt").read_text().strip())
    assert (requirement.name, str(requirement.specifier)) == (project["name"], f"=={project['version']}")
