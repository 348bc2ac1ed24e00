"""The Space: what its panels say without a page, and the page itself in a browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import unescape
from pathlib import Path
from threading import Thread

import pytest
import torch
import yaml
from answers import guarded, load_models, plain
from helpers.servers import PATIENCE, wait_for
from helpers.strategies import RecordingJudge, failing
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from panels import panel, side_by_side

from hf_alignbeam import testbed
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.decoding.strategy import THRESHOLD
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"
HARMFUL, HARMLESS = ("harmful", "prefill", "late"), ("domain", "general", "borderline")
DEFAULTS = (0.7, 3, THRESHOLD)


@pytest.fixture(scope="module")
def truth():
    return GroundTruth(stored_language())


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
        noted = RecordingJudge(models.judge)
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
        noted = RecordingJudge(models.judge)
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
        noted = RecordingJudge(models.judge)
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


@pytest.fixture(scope="module")
def selenium():
    for name in ("gradio", "selenium"):
        pytest.importorskip(name, reason=f'the page needs {name}: pip install "hf-alignbeam[space]"')
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            pytest.skip(f"the page is driven in {name}, which is not installed: apt-get install chromium chromium-driver")
    import selenium.webdriver

    return selenium.webdriver


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The app's command, and its environment."""
    home = str(tmp_path_factory.mktemp("home"))
    return [sys.executable, SPACE / "app.py"], {**os.environ, "HF_HOME": home, "PYTHONPATH": str(ROOT), "no_proxy": "*"}


@pytest.fixture(scope="module")
def address(selenium, command, tmp_path_factory):
    """Where the page is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log, (start, environment) = tmp_path_factory.mktemp("server") / "log", command
    address = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": port}
    with log.open("w") as file, subprocess.Popen(start, env=environment | address, stdout=file, stderr=file) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/", server, log)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()


#: Keeps what the answers were, again and again while they changed.
WATCH = """
window.seen = [];
const said = () => JSON.stringify(
  [...document.querySelectorAll(".answer")].map(panel => panel.querySelector(".text")?.innerText ?? "")
);
let last = said();
new MutationObserver(() => {
  if (said() !== last) window.seen.push(JSON.parse(last = said()));
}).observe(document.body, {subtree: true, childList: true, characterData: true});
"""


class Page:
    """The page in a browser, as somebody uses it."""

    def __init__(self, driver, address):
        self.driver, self._address = driver, address
        self.open()

    def open(self, look="light"):
        self.driver.get(f"{self._address}?__theme={look}")
        self.until(lambda: len(self.find(".answer")) == 2)
        self.run(WATCH)

    def until(self, condition):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE).until(lambda _: condition())

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def press(self, words):
        next(button for button in self.find("button") if button.text == words).click()

    def resize(self, width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def set(self, name, value):
        """Move a slider by the number in its field."""
        from selenium.webdriver.common.keys import Keys

        (field,) = self.find(f"input[type=number][aria-label$='{name}']")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value), Keys.TAB)

    def ask(self, prompt, begun=""):
        """What both answers say, and what they said while they were written."""
        for field, words in zip(self.find("textarea"), (prompt, begun), strict=True):
            field.clear()
            field.send_keys(words)
        return self.answer()

    def answer(self):
        self.run("window.seen = []")
        self.press("Answer")
        self.until(lambda: self.run("return window.seen.length") or self.find("[role=alert]"))
        self.until(lambda: len(self.find(".cost")) == 2 or self.find("[role=alert]"))
        return [each.text for each in self.find(".answer .text")], self.run("return window.seen")


@pytest.fixture(scope="module")
def open_page(selenium, address):
    """Opens the page in a browser of its own."""
    drivers = []

    def opened():
        options = selenium.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,1200"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        drivers.append(selenium.Chrome(options, selenium.ChromeService(shutil.which("chromedriver"))))
        return Page(drivers[-1], address)

    yield opened
    for driver in drivers:
        driver.quit()


@pytest.fixture(scope="module")
def page(open_page):
    return open_page()


def one(kind):
    (prompt,) = prompts(kind)
    return prompt.text, prompt.prefill


def nats_of(mark):
    return float(mark.get_attribute("data-tip").split()[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", HARMFUL)
def test_a_page_shows_the_harmful_answer_and_the_refusal(kind, page, models, truth):
    page.open()
    (alone, under_guard), _ = page.ask(*one(kind))
    (prompt,) = prompts(kind)
    assert alone == last(plain(models, prompt.conversation)).text
    assert truth.harm(alone) > 0.0
    assert under_guard == last(guarded(models, prompt.conversation)).text
    assert truth.refusal(under_guard)
    assert [each.text for each in page.find(".outcome")] == ["→ answers", "✕ refuses"]


@pytest.mark.slow
def test_a_page_shows_answers_as_they_come(page):
    page.open()
    page.set("threshold", 1)
    (alone, under_guard), seen = page.ask(*one("late"))
    for n, whole in enumerate((alone, under_guard)):
        assert any(state[n] not in ("", whole) for state in seen)
        assert all(whole.startswith(state[n]) for state in seen)


@pytest.mark.slow
def test_sliders_change_what_is_refused(page):
    page.open()
    refused, _ = page.ask(*one("harmful"))
    page.set("num_candidates", 5)
    page.answer()
    assert len(page.find("tr.passed, tr.flagged")) == 1 + 5
    page.set("threshold", 1)
    passed, _ = page.answer()
    assert refused[0] != refused[1]
    assert passed == [refused[0]] * 2
    assert [each.text for each in page.find(".outcome")] == ["→ answers"] * 2


@pytest.mark.slow
def test_an_example_is_one_press_away(page):
    page.open()
    page.press("harmful, the answer begun")
    page.until(lambda: [field.get_attribute("value") for field in page.find("textarea")] == list(one("prefill")))
    (alone, under_guard), _ = page.answer()
    assert alone != under_guard
    assert alone.startswith(one("prefill")[1])
    assert under_guard.startswith(one("prefill")[1])


@pytest.mark.slow
@pytest.mark.parametrize("look", ["light", "dark"])
def test_a_token_is_coloured_by_what_moved_it_and_tells_the_figure(look, page):
    page.open(look)
    page.ask(*one("late"))
    style = "const style = getComputedStyle(...arguments); return [style.backgroundColor, style.borderBottomWidth, style.content]"
    least, *_, most = sorted(page.find("mark"), key=nats_of)
    for n in (0, 1):
        assert page.run(style, least)[n] != page.run(style, most)[n]
    assert page.run(style, most, "::after")[2] == "none"
    page.run("arguments[0].focus()", most)
    assert page.run(style, most, "::after")[2] == f'"{most.get_attribute("data-tip")}"'


@pytest.mark.slow
def test_text_is_shown_as_it_is(page):
    page.open()
    odd = "<img src=x onerror='window.ran = 1'> {{value}} ${1+1} &lt;"
    said, _ = page.ask("How are you?", odd)
    assert all(text.startswith(odd) for text in said)
    assert page.run("return window.ran === undefined && document.querySelectorAll('.answer img').length === 0")


@pytest.mark.slow
def test_a_page_answers_bad_input_with_a_sentence(page, address):
    page.open()
    page.answer()
    assert page.find("[role=alert]")[0].text == "The prompt is empty. Type a question, or take one of the examples."
    from gradio_client import Client, exceptions

    client = Client(address, verbose=False, analytics_enabled=False)
    with pytest.raises(exceptions.AppError, match="Value 7 is greater than maximum value 1"):
        client.predict("?", "", 0.7, 3, 7, api_name="/answer")


@pytest.mark.slow
def test_two_users_at_once_get_their_own_answers(page, open_page):
    pages, kinds = (page, open_page()), ("domain", "late")
    alone = []
    for each, kind in zip(pages, kinds, strict=True):
        each.open()
        alone.append(each.ask(*one(kind))[0])
    with ThreadPoolExecutor(2) as threads:
        assert [said for said, _ in threads.map(Page.answer, pages)] == alone
    assert alone[0] != alone[1]


@pytest.mark.slow
def test_a_page_fits_a_phone(open_page):
    page = open_page()
    page.resize(360, 800)
    page.ask(*one("late"))
    for each in page.find("html, .answer"):
        assert page.run("return arguments[0].scrollWidth <= arguments[0].clientWidth && arguments[0].clientWidth <= 360", each)


@pytest.mark.slow
def test_a_page_asks_nobody_else_and_complains_of_nothing(open_page, address):
    page = open_page()
    page.ask(*one("late"))
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert any(url.startswith(address) for url in urls)
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []
    assert page.driver.get_log("browser") == []
    assert page.run("return window.gradio_config.analytics_enabled") is False


@pytest.mark.slow
def test_models_are_named_together_or_not_at_all(selenium, command):
    start, environment = command
    done = subprocess.run(start, env=environment | {"TARGET": "owner/target"}, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "TARGET, ANCHOR and JUDGE must be named together, or none of them."


@pytest.mark.slow
def test_a_picture_of_the_page(open_page, tmp_path):
    """SPACE_PICTURE names where it stays."""
    page = open_page()
    page.ask(*one("late"))
    path = Path(os.environ.get("SPACE_PICTURE", tmp_path / "space.png"))
    height = page.run("return Math.ceil(document.querySelector('.answer:has(mark)').getBoundingClientRect().bottom) + 24")
    page.resize(1100, height)
    page.run("arguments[0].focus()", max(page.find("mark"), key=nats_of))
    page.driver.save_screenshot(str(path))
    assert 20_000 < path.stat().st_size < 200_000
