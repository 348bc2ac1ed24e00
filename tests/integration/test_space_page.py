"""The page of the Space in a browser, with the answers that its models give."""

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from answers import guarded, plain
from helpers import ROOT
from helpers.servers import PATIENCE, wait_for
from helpers.space import HARMFUL, SPACE, last, prompts

pytestmark = pytest.mark.slow


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
    """The URL of the running app."""
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


#: Records the texts of both answers each time they change.
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
    """The page in a browser, driven as a user would."""

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

    def ask(self, prompt, prefill=""):
        """The texts of both answers, and their earlier states."""
        for field, words in zip(self.find("textarea"), (prompt, prefill), strict=True):
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
    """Opens the page in a new browser."""
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


def text_and_prefill(kind):
    (prompt,) = prompts(kind)
    return prompt.text, prompt.prefill


def nats_of(mark):
    return float(mark.get_attribute("data-tip").split()[0])


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_page_shows_the_harmful_answer_and_the_refusal(kind, page, models, truth):
    page.open()
    (alone, under_guard), _ = page.ask(*text_and_prefill(kind))
    (prompt,) = prompts(kind)
    assert alone == last(plain(models, prompt.conversation)).text
    assert truth.harm(alone) > 0.0
    assert under_guard == last(guarded(models, prompt.conversation)).text
    assert truth.refusal(under_guard)
    assert [each.text for each in page.find(".outcome")] == ["→ answers", "✕ refuses"]


def test_a_page_streams_answers(page):
    page.open()
    page.set("threshold", 1)
    (alone, under_guard), seen = page.ask(*text_and_prefill("late"))
    for n, whole in enumerate((alone, under_guard)):
        assert any(state[n] not in ("", whole) for state in seen)
        assert all(whole.startswith(state[n]) for state in seen)


def test_sliders_change_which_answers_are_refused(page):
    page.open()
    refused, _ = page.ask(*text_and_prefill("harmful"))
    page.set("num_candidates", 5)
    page.answer()
    assert len(page.find("tr.passed, tr.flagged")) == 1 + 5
    page.set("threshold", 1)
    passed, _ = page.answer()
    assert refused[0] != refused[1]
    assert passed == [refused[0]] * 2
    assert [each.text for each in page.find(".outcome")] == ["→ answers"] * 2


def test_one_click_fills_in_an_example(page):
    page.open()
    page.press("harmful, prefilled")
    page.until(lambda: [field.get_attribute("value") for field in page.find("textarea")] == list(text_and_prefill("prefill")))
    (alone, under_guard), _ = page.answer()
    assert alone != under_guard
    assert alone.startswith(text_and_prefill("prefill")[1])
    assert under_guard.startswith(text_and_prefill("prefill")[1])


@pytest.mark.parametrize("look", ["light", "dark"])
def test_a_token_is_colored_by_how_far_it_moved_and_shows_the_value(look, page):
    page.open(look)
    page.ask(*text_and_prefill("late"))
    style = "const style = getComputedStyle(...arguments); return [style.backgroundColor, style.borderBottomWidth, style.content]"
    least, *_, most = sorted(page.find("mark"), key=nats_of)
    for n in (0, 1):
        assert page.run(style, least)[n] != page.run(style, most)[n]
    assert page.run(style, most, "::after")[2] == "none"
    page.run("arguments[0].focus()", most)
    assert page.run(style, most, "::after")[2] == f'"{most.get_attribute("data-tip")}"'


def test_text_is_shown_literally(page):
    page.open()
    odd = "<img src=x onerror='window.ran = 1'> {{value}} ${1+1} &lt;"
    said, _ = page.ask("How are you?", odd)
    assert all(text.startswith(odd) for text in said)
    assert page.run("return window.ran === undefined && document.querySelectorAll('.answer img').length === 0")


def test_bad_input_gives_an_error_message_on_the_page(page, address):
    page.open()
    page.answer()
    assert page.find("[role=alert]")[0].text == "The prompt is empty. Type a question, or take one of the examples."
    from gradio_client import Client, exceptions

    client = Client(address, verbose=False, analytics_enabled=False)
    with pytest.raises(exceptions.AppError, match="Value 7 is greater than maximum value 1"):
        client.predict("?", "", 0.7, 3, 7, api_name="/answer")


#: A server whose target is slow; a visitor leaves after the first token, and the forwards are counted then and later.
LEAVING = """
import time
import app, httpx
models, examples = app.from_testbed()
forwards = []
models.target.register_forward_pre_hook(lambda *given: (forwards.append(1), time.sleep(0.1)) and None)
page = app.page(models, {})
_, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
api = url.rstrip("/") + "/gradio_api/queue"
function = next(n for n, each in page.fns.items() if each.api_name == "answer")
asked = {"data": [*examples["harmless"], 0.7, 3, 0.5], "fn_index": function, "session_hash": "x"}
with httpx.Client(trust_env=False) as client:
    client.post(f"{api}/join", json=asked).raise_for_status()
    with client.stream("GET", f"{api}/data", params={"session_hash": "x"}) as stream:
        next(line for line in stream.iter_lines() if "process_generating" in line)
time.sleep(2)
print(len(forwards))
time.sleep(1)
print(len(forwards))
"""


def test_the_server_stops_the_answer_of_a_visitor_who_leaves(command):
    pytest.importorskip("gradio", reason='the page needs gradio: pip install "hf-alignbeam[space]"')
    _, environment = command
    path = os.pathsep.join([environment["PYTHONPATH"], str(SPACE)])
    start = [sys.executable, "-c", LEAVING]
    done = subprocess.run(start, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=PATIENCE)
    before, after = done.stdout.split()
    assert before == after
    assert int(after) < 15


def test_two_users_at_once_get_their_own_answers(page, open_page):
    pages, kinds = (page, open_page()), ("domain", "late")
    alone = []
    for each, kind in zip(pages, kinds, strict=True):
        each.open()
        alone.append(each.ask(*text_and_prefill(kind))[0])
    with ThreadPoolExecutor(2) as threads:
        assert [said for said, _ in threads.map(Page.answer, pages)] == alone
    assert alone[0] != alone[1]


def test_a_page_fits_a_phone(open_page):
    page = open_page()
    page.resize(360, 800)
    page.ask(*text_and_prefill("late"))
    for each in page.find("html, .answer"):
        assert page.run("return arguments[0].scrollWidth <= arguments[0].clientWidth && arguments[0].clientWidth <= 360", each)


def test_a_page_loads_nothing_from_other_hosts_and_logs_no_errors(open_page, address):
    page = open_page()
    page.ask(*text_and_prefill("late"))
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert any(url.startswith(address) for url in urls)
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []
    assert page.driver.get_log("browser") == []
    assert page.run("return window.gradio_config.analytics_enabled") is False


def test_models_are_named_together_or_not_at_all(selenium, command):
    start, environment = command
    done = subprocess.run(start, env=environment | {"TARGET": "owner/target"}, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "TARGET, ANCHOR and JUDGE must be named together, or none of them."


def test_a_picture_of_the_page(open_page, tmp_path):
    """SPACE_PICTURE names a file to keep it."""
    page = open_page()
    page.ask(*text_and_prefill("late"))
    path = Path(os.environ.get("SPACE_PICTURE", tmp_path / "space.png"))
    height = page.run("return Math.ceil(document.querySelector('.answer:has(mark)').getBoundingClientRect().bottom) + 24")
    page.resize(1100, height)
    page.run("arguments[0].focus()", max(page.find("mark"), key=nats_of))
    page.driver.save_screenshot(str(path))
    assert 20_000 < path.stat().st_size < 200_000
