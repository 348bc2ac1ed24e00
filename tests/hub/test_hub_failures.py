"""A Hub that denies, fails or hangs up: the error names the repository and the way out, and no half of anything is left."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
from helpers.entries import COMMAND, COMMANDS, SECRET, result_of
from helpers.variety import mostly_slow

from hf_alignbeam.testbed.model_store import WEIGHTS

pytestmark = pytest.mark.usefixtures("hub_models")

#: For each kind of failure, the status that the server answers with; None: it cuts the connection.
FAILURES = {"denied": 401, "gated": 403, "missing": 404, "broken": 500, "cut": None}


@pytest.fixture(scope="module")
def failing(hub):
    """Names of repositories whose requests fail; of `fails/late` only the request for one file fails, after others succeed."""
    late = hub.commit_folder("fails/late", WEIGHTS / "anchor")
    failures = {f"fails/late/resolve/{revision}/adapter_config.json": None for revision in ("main", late)}
    for name, status in FAILURES.items():
        hub.commit_folder(f"fails/{name}", WEIGHTS / "anchor")
        failures |= {f"{start}fails/{name}/": status for start in ("", "api/models/")}
    hub.failures |= failures
    yield [f"fails/{name}" for name in FAILURES]
    for path in failures:
        del hub.failures[path]


CALL = """
import json, os, sys, time, traceback
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
time.sleep = lambda seconds: None
folder, secret, names = sys.argv[1], sys.argv[2], sys.argv[3:]
os.environ["HF_TOKEN"] = secret
model, tokenizer = AutoModelForCausalLM.from_pretrained("world/specialist"), AutoTokenizer.from_pretrained("world/specialist")
errors = []
for name in names:
    for guard in ({"anchor": name, "judge": "world/judge-lm"}, {"anchor": "world/anchor", "judge": name}):
        options = {"custom_generate": folder, "trust_remote_code": True, "token": secret + "given", "tokenizer": tokenizer}
        try:
            model.generate(torch.tensor([[5, 6, 7]]), **options, **guard)
        except OSError as error:
            traceback.print_exc()
            errors.append([name, str(error)])
print("RESULT", json.dumps(errors))
"""


#: A status and a connection that is cut; all failures are slow.
PARTS = [slice(1, None, 3), pytest.param(slice(None), marks=pytest.mark.slow)]


@pytest.mark.parametrize("part", PARTS)
def test_an_error_names_the_model_that_cannot_be_loaded_and_no_token(part, in_a_process, failing, strategy_folder):
    names = [*failing, "world/nobody"][part]
    done = in_a_process(CALL, strategy_folder("alignbeam"), SECRET, *names)
    errors = result_of(done)
    assert [name for name, _ in errors] == [name for name in names for _ in range(2)]
    for name, message in errors:
        assert message.startswith(f"{name} could not be loaded, and nothing is guarded without it: ")
        assert "that you may read it (`hf auth login` or HF_TOKEN)" in message
    assert SECRET not in done.stdout + done.stderr


PROBED = """
import json, sys, time
from hf_alignbeam.hub.judge_loading import find_probes
time.sleep = lambda seconds: None
found = []
for name in sys.argv[1:]:
    try:
        found.append(find_probes(name) is not None)
    except OSError as error:
        found.append(str(error))
print("RESULT", json.dumps(found))
"""


def test_probes_that_cannot_be_asked_for_are_an_error_and_not_another_judge(hub, in_a_process):
    for name in ("ours", "broken", "cut"):
        hub.commit(f"probed/{name}", {"judge_probes.safetensors": b"probes"})
    hub.failures |= {"probed/broken/resolve/main/judge_probes": 500, "probed/cut/resolve/main/judge_probes": None}
    ours, broken, cut, plain = result_of(in_a_process(PROBED, "probed/ours", "probed/broken", "probed/cut", "world/judge-lm"))
    assert (ours, plain) == (True, False)
    for name, message in (("broken", broken), ("cut", cut)):
        assert message.startswith(f"probed/{name} could not be loaded, and nothing is guarded without it: ")
    hub.failures["world/judge-lm/resolve/main/judge_probes"] = 500
    assert result_of(in_a_process(PROBED, "world/judge-lm")) == [False]  # the cache knows that there are none
    for path in ("probed/broken", "probed/cut", "world/judge-lm"):
        del hub.failures[f"{path}/resolve/main/judge_probes"]


PROTECT = (
    COMMANDS
    + """
import json
folder, names, statuses = sys.argv[1], sys.argv[2:], []
for name in names:
    for kind in ("anchor", "judge", "model"):
        models = {"model": "world/specialist", "anchor": "world/anchor", "judge": "world/judge-lm", kind: name}
        options = [part for each, repo in models.items() for part in ("--" + each, repo)]
        statuses.append(command("protect", *options, "--to", folder))
print("RESULT", json.dumps(statuses))
"""
)


@pytest.mark.parametrize("part", PARTS)
def test_protect_leaves_nothing_behind_if_a_model_cannot_be_loaded(part, in_a_process, failing, tmp_path):
    names = [*failing, "world/nobody"][part]
    done = in_a_process(PROTECT, tmp_path / "made", *names)
    assert result_of(done) == [2] * 3 * len(names)
    errors = re.findall("^Error: (.*)", done.stderr, re.M)
    expected = [f"{name} could not be loaded, and nothing is guarded without it: " for name in names for _ in range(3)]
    assert [error.startswith(start) for error, start in zip(errors, expected, strict=True)] == [True] * len(errors)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("at", "status"),
    mostly_slow(
        product(["repos/create", "models/refused/new/commit"], [401, 403, 500, None]),
        [("repos/create", 401), ("models/refused/new/commit", 500), ("models/refused/new/commit", None)],
    ),
)
def test_a_push_that_fails_is_reported_and_leaves_no_half_commit(status, at, hub, in_a_process):
    """Only whole commits are sent: none with a few files, whose rest would come with the next."""
    hub.failures[f"api/{at}"] = status
    since = len(hub.requests)
    try:
        done = in_a_process(COMMAND, "publish", "alignbeam", "--to", "refused/new", "--push")
    finally:
        del hub.failures[f"api/{at}"]
    assert done.returncode == 2
    assert "refused/new could not be pushed: " in done.stderr
    assert "A push is one commit" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.files("refused/new", "main") == {}
    commits = [request.body for request in hub.requests[since:] if "/commit/" in request.path]
    assert bool(commits) == ("commit" in at)
    assert len(set(commits)) <= 1


GENERATE_WITH = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
model, errors = AutoModelForCausalLM.from_pretrained("world/specialist"), []
for name, revision in json.loads(sys.argv[1]):
    options = {"custom_generate": name, "revision": revision, "anchor": "world/anchor", "judge": "world/judge-lm"}
    try:
        model.generate(torch.tensor([[5, 6, 7]]), **options, trust_remote_code=True)
    except OSError as error:
        errors.append(str(error))
print("RESULT", json.dumps(errors))
"""


def test_a_repository_without_a_whole_strategy_generates_nothing(hub, in_a_process, strategy_folder):
    missing = "decoding_judged_decoding.py"
    hub.commit_folder("half/strategy", Path(strategy_folder("alignbeam")))
    hub.commit("half/strategy", {}, without=[f"custom_generate/{missing}"])
    tried = {"half/strategy": None, "world/specialist": None, "world/nobody": None, "world/anchor": "no-such-branch"}
    errors = result_of(in_a_process(GENERATE_WITH, json.dumps(list(tried.items()))))
    assert len(errors) == len(tried)
    assert all(name in message for name, message in zip(tried, errors, strict=True))
    assert missing in errors[0]
    assert "no-such-branch" in errors[3]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(
            ["generate", "--model", "world/nobody", "--anchor", "world/anchor", "--prompt", "x"],
            "world/nobody",
            marks=pytest.mark.slow,
        ),
        (["generate", "--model", "fails/late", "--anchor", "world/anchor", "--prompt", "x"], "disconnected"),
        pytest.param(
            ["generate", "--model", "world/specialist", "--anchor", "world/anchor", "--judge", "fails/cut", "--prompt", "x"],
            "fails/cut",
            marks=pytest.mark.slow,
        ),
        (["doctor", "world/specialist", "world/anchor", "fails/gated"], "fails/gated"),
        (["publish", "alignbeam", "--to", "no such name", "--push"], "no such name"),
    ],
)
def test_commands_report_a_failing_server_in_one_sentence(arguments, named, in_a_process, failing):
    done = in_a_process(COMMAND, *arguments)
    assert done.returncode == 2
    assert named in done.stderr.partition("Error: ")[2]
    assert "Traceback" not in done.stderr


UNREACHABLE = "import huggingface_hub.constants; huggingface_hub.constants.ENDPOINT = 'http://127.0.0.1:9'"


def test_an_unreachable_hub_is_reported_in_one_sentence(in_a_process):
    done = in_a_process(UNREACHABLE + COMMAND, "publish", "alignbeam", "--to", "you/alignbeam", "--push")
    assert done.returncode == 2
    assert "you/alignbeam could not be pushed: " in done.stderr
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr
