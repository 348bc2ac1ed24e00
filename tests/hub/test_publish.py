"""The Hub, end to end, without the Hub: what is pushed and loaded, what a branch that moves changes, whose tokens go where."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest
import torch
from helpers.entries import BLOCKED, said_by
from helpers.local_hub import Heard
from helpers.searches import framed
from helpers.strategies import chats_of
from huggingface_hub import ModelCard

from hf_alignbeam import AlignBeam, AnchorLogitsProcessor, EmbeddingSteerer, PlausibleAnswer, testbed
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub.publish import ENTRIES, write_protected, write_strategy
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges, stored_language

# peft 0.21 under transformers 5.23
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

GREEDY = {"max_new_tokens": 40, "do_sample": False}
#: The testbed's models that stand on the hub, as `world/NAME`.
WORLD = ("anchor", "specialist", "thin", "base", "judge-lm", "judge-cls")
#: By strategy, its target, and what a call of its folder names.
NAMED = {
    "anchor-logits": ("specialist", {"anchor": "world/anchor"}),
    "alignbeam": ("specialist", {"anchor": "world/anchor", "judge": "world/judge-lm"}),
    "embedding-steerer": ("thin", {"judge": "world/judge-cls", "accept": "world/anchor"}),
}

#: The command's status; waits for a server that fails are left out.
COMMANDED = """
import sys, time
from hf_alignbeam.cli.app import app
time.sleep = lambda seconds: None

def command(*arguments):
    try:
        app([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code or 0
"""
COMMAND = COMMANDED + "sys.exit(command(*sys.argv[1:]))"
#: A model, the package being nowhere but in the repository.
ASK = (
    BLOCKED
    + """
import json
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
name, load, inputs, how = sys.argv[1], *map(json.loads, sys.argv[2:])
model = AutoModelForCausalLM.from_pretrained(name, **load)
if "custom_generate" in how:
    how |= {"tokenizer": AutoTokenizer.from_pretrained(name), "trust_remote_code": True}
said = model.generate(**{key: torch.tensor(rows) for key, rows in inputs.items()}, **how, max_new_tokens=40, do_sample=False)
print("SAID", json.dumps(said.tolist()))
"""
)
TRUSTED, JUDGE = {"trust_remote_code": True}, str(WEIGHTS / "judge-lm")
#: What must stand nowhere but in the header of a request to the hub.
SECRET = "hf_" + "SeCrEt" * 5


@pytest.fixture(scope="module", autouse=True)
def world(hub):
    """The commits of the testbed's models on the hub."""
    return {name: hub.commit_folder(f"world/{name}", WEIGHTS / name) for name in WORLD}


@pytest.fixture(scope="module")
def thin():
    return testbed.load("thin")


@pytest.fixture(scope="module")
def said(specialist, thin, anchor):
    """By strategy, two prompts to its target, and what is said by the object form."""
    judges = stored_judges()
    steerer = EmbeddingSteerer(*thin, judges["judge-cls"], PlausibleAnswer(*anchor))
    forms = {
        "anchor-logits": (specialist, {"logits_processor": [AnchorLogitsProcessor(*anchor, specialist[1])]}),
        "alignbeam": (specialist, {"custom_generate": AlignBeam(*anchor, specialist[1], judges["judge-lm"])}),
    }
    found = {}
    for name, ((model, tokenizer), how) in forms.items():
        inputs = encode(chats_of("harmful", 1) + chats_of("general", 1), tokenizer)
        found[name] = inputs, model.generate(**inputs, **how, **GREEDY)
    prompts = framed(1) + chats_of("general", 1)
    found["embedding-steerer"] = encode(prompts, thin[1]), steerer.generate(prompts, **GREEDY)
    for name, (target, _) in NAMED.items():
        model = {"specialist": specialist, "thin": thin}[target][0]
        assert found[name][1].tolist() != model.generate(**found[name][0], **GREEDY).tolist()  # each has something to do
    return {
        name: ({key: value.tolist() for key, value in inputs.items()}, output.tolist())
        for name, (inputs, output) in found.items()
    }


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def paths(hub, repo, since=0):
    """What was asked of a repository."""
    return [heard.path for heard in hub.heard[since:] if f"/{repo}/" in f"{heard.path}/"]


def pushed(done, hub, repo):
    """The commit that a command says it has pushed."""
    assert done.returncode == 0, done.stderr
    sha = re.search(r"revision='(\w{40})'", done.stdout).group(1)
    assert sha == hub.main[repo]
    return sha


@pytest.mark.parametrize("strategy", ENTRIES)
def test_what_is_pushed_says_what_the_object_says(strategy, hub, in_a_process, said, tmp_path):
    """Into a new repository, and from there with nothing of it in the cache."""
    repo = f"pushed/{strategy}"
    sha = pushed(in_a_process(COMMAND, "publish", strategy, "--to", repo, "--push"), hub, repo)
    write_strategy(strategy, tmp_path / "local", repo)
    assert hub.files(repo, sha) == files_of(tmp_path / "local")
    (target, named), (inputs, expected) = NAMED[strategy], said[strategy]
    how, since = json.dumps({"custom_generate": repo, "revision": sha, **named}), len(hub.heard)
    assert said_by(in_a_process(ASK, f"world/{target}", "{}", json.dumps(inputs), how)) == expected
    assert f"/{repo}/resolve/{sha}/custom_generate/hub_{strategy.replace('-', '_')}.py" in paths(hub, repo, since)


def test_a_second_push_leaves_nothing_of_the_first(hub, in_a_process, tmp_path):
    first = hub.commit("again/alignbeam", {"custom_generate/old.py": b"", ".gitattributes": b"", "README.md": b"old"})
    pushed(in_a_process(COMMAND, "publish", "alignbeam", "--to", "again/alignbeam", "--push"), hub, "again/alignbeam")
    write_strategy("alignbeam", tmp_path / "local", "again/alignbeam")
    assert hub.files("again/alignbeam", "main") == {".gitattributes": b"", **files_of(tmp_path / "local")}
    assert hub.files("again/alignbeam", first)["README.md"] == b"old"


OTHER = b"def generate(*args, model, **kwargs):\n    return kwargs['input_ids'] * 0\n"


def test_a_pinned_strategy_stays_and_an_unpinned_one_follows(hub, in_a_process, said, tmp_path):
    write_strategy("alignbeam", tmp_path / "local")
    good = hub.commit_folder("moved/alignbeam", tmp_path / "local")
    hub.commit("moved/alignbeam", {"custom_generate/generate.py": OTHER})
    (target, named), (inputs, expected) = NAMED["alignbeam"], said["alignbeam"]
    asking = [ASK, f"world/{target}", "{}", json.dumps(inputs)]
    how, since = {"custom_generate": "moved/alignbeam", **named}, len(hub.heard)
    assert said_by(in_a_process(*asking, json.dumps({**how, "revision": good}))) == expected
    asked_for = paths(hub, "moved/alignbeam", since)
    assert asked_for
    assert all(good in path for path in asked_for)
    assert not any(any(row) for row in said_by(in_a_process(*asking, json.dumps(how))))


def test_what_moves_behind_a_protected_model_changes_nothing(hub, in_a_process, said, specialist, anchor, tmp_path):
    """Its anchor, its judge and its own branch, its tokenizer's files among them: pinned, all of them."""
    for name, model in (("anchor", "anchor"), ("judge", "judge-cls")):
        hub.commit_folder(f"moving/{name}", WEIGHTS / model)
    named, guarded = {"anchor": "moving/anchor", "judge": "moving/judge"}, "moving/guarded"
    options = [part for name, repo in named.items() for part in (f"--{name}", repo)]
    done = in_a_process(COMMAND, "protect", "--model", "world/specialist", *options, "--to", guarded, "--push")
    shas = {name: hub.main[repo] for name, repo in named.items()}
    sha = pushed(done, hub, guarded)
    revisions = {f"{name}_revision": sha for name, sha in shas.items()}
    assert json.loads(hub.files(guarded, sha)["generation_config.json"])["alignbeam"] == {**named, **revisions}

    inputs = said["alignbeam"][0]
    strategy = AlignBeam(*anchor, specialist[1], stored_judges()["judge-cls"])
    given = {key: torch.tensor(rows) for key, rows in inputs.items()}
    expected, plain = (specialist[0].generate(**given, **how, **GREEDY).tolist() for how in ({"custom_generate": strategy}, {}))
    assert expected != plain
    config = json.loads(hub.files("moving/judge", "main")["config.json"])
    hub.commit("moving/judge", {"config.json": json.dumps({**config, "id2label": {"0": "unsafe", "1": "safe"}}).encode()})
    hub.commit_folder("moving/anchor", WEIGHTS / "unaligned")
    hub.commit(guarded, {"tokenizer.json": b"{}", "chat_template.jinja": b"", "custom_generate/generate.py": b"1 / 0\n"})
    load, since = json.dumps({"revision": sha, **TRUSTED}), len(hub.heard)
    assert said_by(in_a_process(ASK, guarded, load, json.dumps(inputs), "{}")) == expected
    for repo, pin in ((guarded, sha), *((repo, shas[name]) for name, repo in named.items())):
        asked_for = paths(hub, repo, since)
        assert asked_for
        assert all(pin in path for path in asked_for), asked_for

    write_strategy("alignbeam", tmp_path / "local")
    how = {"custom_generate": str(tmp_path / "local"), **named}
    asking = [ASK, "world/specialist", "{}", json.dumps(inputs)]
    assert said_by(in_a_process(*asking, json.dumps({**how, **revisions}))) == expected
    assert said_by(in_a_process(*asking, json.dumps(how))) != expected  # an inverted judge, and no guard without a pin


def test_a_protected_repository_is_guarded_or_not_loaded(hub, in_a_process, said, tmp_path):
    write_protected(str(WEIGHTS / "specialist"), tmp_path / "made", {"anchor": str(WEIGHTS / "anchor"), "judge": JUDGE})
    hub.commit_folder("owner/protected", tmp_path / "made")
    inputs, expected = said["alignbeam"]
    for load in (TRUSTED, {**TRUSTED, "subfolder": ""}):  # harnesses name an empty one always
        assert said_by(in_a_process(ASK, "owner/protected", json.dumps(load), json.dumps(inputs), "{}")) == expected
    untrusting = in_a_process(ASK, "owner/protected", "{}", json.dumps(inputs), "{}")
    assert untrusting.returncode != 0
    assert "trust_remote_code=True" in untrusting.stderr


STEERED = """
import json, sys
from hf_alignbeam import SteeredPrompts, testbed
model, _ = testbed.load("thin")
first, second = (SteeredPrompts.from_pretrained(folder, model) for folder in sys.argv[1:])
pinned = first.push_to_hub("owner/steered").rsplit("/", 1)[-1]
second.push_to_hub("owner/steered")
told = [SteeredPrompts.from_pretrained("owner/steered", model, revision=revision) for revision in (pinned, None)]
print("SAID", json.dumps([[[prompt.text, prompt.embeds.tolist()] for prompt in prompts] for prompts in told]))
"""


def test_steered_prompts_are_pushed_pinned_and_loaded(hub, in_a_process, thin, anchor, tmp_path):
    steerer = EmbeddingSteerer(*thin, stored_judges()["judge-cls"], PlausibleAnswer(*anchor))
    made = [steerer.precompute(prompts, tmp_path / str(n), **GREEDY) for n, prompts in enumerate((framed(1), framed(2)))]
    said = said_by(in_a_process(STEERED, tmp_path / "0", tmp_path / "1"))
    assert said == [[[prompt.text, prompt.embeds.tolist()] for prompt in prompts] for prompts in made]
    assert set(hub.files("owner/steered", "main")) == {"steered.json", "steered.safetensors"}


@pytest.fixture(scope="module")
def lora(hub, world):
    """A LoRA on the hub, as its author left it: its base is named, and pinned."""
    settings = json.loads((WEIGHTS / "specialist-lora" / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "world/base", "revision": world["base"]}
    hub.commit_folder("you/lora", WEIGHTS / "specialist-lora")
    hub.commit("you/lora", {"adapter_config.json": json.dumps(settings).encode()})
    return hub.files("you/lora", "main")


@pytest.fixture(scope="module")
def adapted():
    return testbed.load("specialist-lora")


@pytest.mark.parametrize("strategy", ENTRIES)
def test_an_adapters_repository_is_guarded_where_a_call_names_it(strategy, hub, in_a_process, lora, adapted):
    """By the example of its own card, which stays and gets a part; the base is the anchor."""
    for _ in range(2):  # a second time changes nothing
        sha = pushed(in_a_process(COMMAND, "publish", strategy, "--to", "you/lora", "--push"), hub, "you/lora")
    files = hub.files("you/lora", sha)
    assert {name: files[name] for name in lora if name != "README.md"} == {n: d for n, d in lora.items() if n != "README.md"}
    card = files["README.md"].decode()
    assert card.startswith(lora["README.md"].decode().rstrip())
    assert card.count("It guards the calls that name it, and no others") == 1
    assert ModelCard(card).data.to_dict() == ModelCard(lora["README.md"].decode()).data.to_dict()

    (example,) = re.findall(r"```python\n(.*?)```", card.partition("<!-- hf_alignbeam -->")[2], re.S)
    (conversation,) = chats_of("harmful", 1)
    example = example.replace("FULL_SHA_OF_A_COMMIT_YOU_HAVE_READ", sha).replace('"..."', repr(conversation[0]["content"]))
    done = in_a_process(BLOCKED + example.replace("meta-llama/Llama-Guard-3-1B", "world/judge-lm"))
    assert done.returncode == 0, done.stderr
    model, tokenizer = adapted
    judge, inputs = stored_judges()["judge-lm"], encode([conversation], tokenizer)
    guard = {"model": model, "anchor": "base", "anchor_tokenizer": tokenizer, "tokenizer": tokenizer}
    if strategy == "anchor-logits":
        said = model.generate(**inputs, logits_processor=[AnchorLogitsProcessor(**guard)], max_new_tokens=256)
    elif strategy == "alignbeam":
        said = model.generate(**inputs, custom_generate=AlignBeam(judge=judge, **guard), max_new_tokens=256)
    else:
        said = EmbeddingSteerer(model, tokenizer, judge).generate([conversation], max_new_tokens=256)
    assert done.stdout.strip() == tokenizer.decode(said[0], skip_special_tokens=True).strip()
    assert said.tolist() != model.generate(**inputs, max_new_tokens=256).tolist()


ADAPTED = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
inputs = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[1]).items()}
loaded = [
    AutoModelForCausalLM.from_pretrained("you/lora", trust_remote_code=True),
    AutoPeftModelForCausalLM.from_pretrained("you/lora"),
]
print("SAID", json.dumps([model.generate(**inputs, max_new_tokens=40, do_sample=False).tolist() for model in loaded]))
"""


def test_what_loads_an_adapter_loads_no_guard(in_a_process, hub, lora, adapted):
    """As its card says: neither class looks for one, whoever is trusted."""
    pushed(in_a_process(COMMAND, "publish", "anchor-logits", "--to", "you/lora", "--push"), hub, "you/lora")
    inputs = encode(chats_of("harmful", 1), adapted[1])
    told = said_by(in_a_process(ADAPTED, json.dumps({name: rows.tolist() for name, rows in inputs.items()})))
    assert told == [adapted[0].generate(**inputs, **GREEDY).tolist()] * 2


def test_an_adapters_folder_gets_the_same(in_a_process, lora, tmp_path):
    for name, data in lora.items():
        (tmp_path / name).write_bytes(data)
    assert in_a_process(COMMAND, "publish", "alignbeam", "--to", tmp_path).returncode == 0
    files = files_of(tmp_path)
    assert {name.split("/")[0] for name in set(files) - set(lora)} == {"custom_generate"}
    assert b"hf_alignbeam -->" in files["README.md"]


def test_what_would_stand_beside_its_guard_unguarded_is_refused(hub, in_a_process, lora, tmp_path):
    named = ["--anchor", "world/anchor", "--judge", "world/judge-lm"]
    before = hub.commit_folder("you/model", WEIGHTS / "specialist")
    for command in (["publish", "alignbeam"], ["protect", "--model", "world/specialist", *named]):
        done = in_a_process(COMMAND, *command, "--to", "you/model", "--push")
        assert done.returncode == 2
        assert "must be new, or pushed by this command, but you/model holds " in done.stderr
        assert "model.safetensors" in done.stderr
    assert hub.main["you/model"] == before
    done = in_a_process(COMMAND, "protect", "--model", "you/lora", *named, "--to", tmp_path / "made")
    assert done.returncode == 2
    assert "you/lora is an adapter, which nothing loads with a guard" in done.stderr
    assert "alignbeam publish alignbeam --to you/lora" in done.stderr
    local = ["--anchor", WEIGHTS / "anchor", "--judge", "world/judge-lm"]
    done = in_a_process(COMMAND, "protect", "--model", "world/specialist", *local, "--to", "you/new", "--push")
    assert done.returncode == 2
    assert "--anchor must be a Hub id with --push" in done.stderr
    assert "you/new" not in hub.main
    assert not (tmp_path / "made").exists()


#: Where an anchor or a judge cannot be had: what a server does with requests for it.
FAILURES = {"denied": 401, "gated": 403, "missing": 404, "broken": 500, "cut": None}


@pytest.fixture(scope="module")
def failing(hub):
    """The names of repositories that fail; of `fails/late`, one file alone does, which is asked for when much has come."""
    late = hub.commit_folder("fails/late", WEIGHTS / "anchor")
    fails = {f"fails/late/resolve/{late}/adapter_config.json": None}
    for name, status in FAILURES.items():
        hub.commit_folder(f"fails/{name}", WEIGHTS / "anchor")
        fails |= {f"{start}fails/{name}/": status for start in ("", "api/models/")}
    hub.fails |= fails
    yield [f"fails/{name}" for name in FAILURES]
    for beginning in fails:
        del hub.fails[beginning]


TRIED = """
import json, os, sys, time, traceback
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
time.sleep = lambda seconds: None
folder, secret, names = sys.argv[1], sys.argv[2], sys.argv[3:]
os.environ["HF_TOKEN"] = secret
model, tokenizer = AutoModelForCausalLM.from_pretrained("world/specialist"), AutoTokenizer.from_pretrained("world/specialist")
told = []
for name in names:
    for named in ({"anchor": name, "judge": "world/judge-lm"}, {"anchor": "world/anchor", "judge": name}):
        how = {"custom_generate": folder, "trust_remote_code": True, "token": secret + "given", "tokenizer": tokenizer, **named}
        try:
            model.generate(torch.tensor([[5, 6, 7]]), **how)
        except OSError as error:
            traceback.print_exc()
            told.append([name, str(error)])
print("SAID", json.dumps(told))
"""


def test_what_a_guard_cannot_have_is_named_and_no_token_is(in_a_process, failing, tmp_path):
    write_strategy("alignbeam", tmp_path / "local")
    names = [*failing, "world/nobody"]
    done = in_a_process(TRIED, tmp_path / "local", SECRET, *names)
    told = said_by(done)
    assert [name for name, _ in told] == [name for name in names for _ in range(2)]
    for name, message in told:
        assert message.startswith(f"{name} could not be loaded, and nothing is guarded without it: ")
        assert "that you may read it (`hf auth login` or HF_TOKEN)" in message
    assert SECRET not in done.stdout + done.stderr


PROTECTED = (
    COMMANDED
    + """
import json
place, names, ended = sys.argv[1], sys.argv[2:], []
for name in names:
    for kind in ("anchor", "judge", "model"):
        named = {"model": "world/specialist", "anchor": "world/anchor", "judge": "world/judge-lm", kind: name}
        options = [part for each, repo in named.items() for part in ("--" + each, repo)]
        ended.append(command("protect", *options, "--to", place))
print("SAID", json.dumps(ended))
"""
)


def test_protect_leaves_nothing_behind_where_a_part_cannot_be_had(in_a_process, failing, tmp_path):
    names = [*failing, "world/nobody"]
    done = in_a_process(PROTECTED, tmp_path / "made", *names)
    assert said_by(done) == [2] * 3 * len(names)
    told = re.findall("^Error: (.*)", done.stderr, re.M)
    expected = [f"{name} could not be loaded, and nothing is guarded without it: " for name in names for _ in range(3)]
    assert [each.startswith(start) for each, start in zip(told, expected, strict=True)] == [True] * len(told)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("status", [401, 403, 500, None])
@pytest.mark.parametrize("at", ["repos/create", "models/refused/new/commit"])
def test_a_push_that_is_refused_or_cut_is_told_and_half_of_it_is_nowhere(status, at, hub, in_a_process):
    """Whole commits alone are made: none of a few files, whose rest would have come with the next."""
    hub.fails[f"api/{at}"] = status
    since = len(hub.heard)
    try:
        done = in_a_process(COMMAND, "publish", "alignbeam", "--to", "refused/new", "--push")
    finally:
        del hub.fails[f"api/{at}"]
    assert done.returncode == 2
    assert "refused/new could not be pushed: " in done.stderr
    assert "A push is one commit" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.files("refused/new", "main") == {}
    commits = [heard.body for heard in hub.heard[since:] if "/commit/" in heard.path]
    assert bool(commits) == ("commit" in at)
    assert len(set(commits)) <= 1


REFUSED = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
model, told = AutoModelForCausalLM.from_pretrained("world/specialist"), []
for name, revision in json.loads(sys.argv[1]):
    how = {"custom_generate": name, "revision": revision, "anchor": "world/anchor", "judge": "world/judge-lm"}
    try:
        model.generate(torch.tensor([[5, 6, 7]]), **how, trust_remote_code=True)
    except OSError as error:
        told.append(str(error))
print("SAID", json.dumps(told))
"""


def test_a_repository_that_holds_no_whole_strategy_generates_nothing(hub, in_a_process, tmp_path):
    write_strategy("alignbeam", tmp_path / "local")
    hub.commit_folder("half/strategy", tmp_path / "local")
    hub.commit("half/strategy", {}, without=["custom_generate/decoding_judged_decoding.py"])
    tried = {"half/strategy": None, "world/specialist": None, "world/nobody": None, "world/anchor": "no-such-branch"}
    told = said_by(in_a_process(REFUSED, json.dumps(list(tried.items()))))
    assert len(told) == len(tried)
    assert all(name in message for name, message in zip(tried, told, strict=True))
    assert "choosing.py" in told[0]
    assert "no-such-branch" in told[3]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "--model", "world/nobody", "--anchor", "world/anchor", "--prompt", "x"], "world/nobody"),
        (["generate", "--model", "fails/late", "--anchor", "world/anchor", "--prompt", "x"], "disconnected"),
        (
            ["generate", "--model", "world/specialist", "--anchor", "world/anchor", "--judge", "fails/cut", "--prompt", "x"],
            "fails/cut",
        ),
        (["doctor", "world/specialist", "world/anchor", "fails/gated"], "fails/gated"),
        (["publish", "alignbeam", "--to", "no such name", "--push"], "no such name"),
    ],
)
def test_at_the_terminal_a_server_that_fails_is_a_sentence(arguments, named, in_a_process, failing):
    done = in_a_process(COMMAND, *arguments)
    assert done.returncode == 2
    assert named in done.stderr.partition("Error: ")[2]
    assert "Traceback" not in done.stderr


NOBODY = "import huggingface_hub.constants; huggingface_hub.constants.ENDPOINT = 'http://127.0.0.1:9'"


def test_a_hub_that_nobody_answers_for_is_a_sentence(in_a_process):
    done = in_a_process(NOBODY + COMMAND, "publish", "alignbeam", "--to", "you/alignbeam", "--push")
    assert done.returncode == 2
    assert "you/alignbeam could not be pushed: " in done.stderr
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr


class Elsewhere(BaseHTTPRequestHandler):
    """Another host: the grammar behind a moderation endpoint, and where the hub's weights lie."""

    def do_GET(self):
        parts = unquote(self.path).strip("/").split("/")
        self._say(self.server.hub.files("/".join(parts[:2]), parts[3])["/".join(parts[4:])])

    def do_POST(self):
        asked_about = json.loads(body := self.rfile.read(int(self.headers["Content-Length"])))["input"]
        harm = GroundTruth(stored_language()).harm(asked_about)
        self._say(json.dumps({"id": "m", "model": "grammar", "results": [{"category_scores": {"harm": harm}}]}).encode(), body)

    def _say(self, data, asked_about=b""):
        self.server.heard.append(Heard(self.path, dict(self.headers), asked_about))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def elsewhere(hub):
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        server.hub, server.heard = hub, []
        Thread(target=server.serve_forever).start()
        hub.elsewhere = f"http://localhost:{server.server_port}"  # another host by its name
        yield server
        hub.elsewhere = ""
        server.shutdown()


SECRETIVE = (
    COMMANDED
    + """
import json, logging, os
from pathlib import Path
logging.basicConfig(level=logging.DEBUG)
secret, given, folder, elsewhere, prompt = sys.argv[1:]
os.environ |= {"HF_TOKEN": secret, "OPENAI_API_KEY": "sk-test", "no_proxy": "*"}
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from hf_alignbeam import SteeredPrompts
from hf_alignbeam.hub import model_loading
from hf_alignbeam.hub.alignbeam import alignbeam
from hf_alignbeam.judges.moderation_api import ModerationJudge
transformers.utils.logging.set_verbosity_debug()
place = Path(folder)
(place / "asked.jsonl").write_text(json.dumps({"prompt": prompt, "harmful": True}) + chr(10))

guard = ["--anchor", "secret/anchor", "--judge", "world/judge-lm"]
target, questions = ["--model", "secret/specialist"], ["--file", place / "asked.jsonl"]
judge = ["--judge", elsewhere + "/v1"]
(place / "recipe.yaml").write_text(json.dumps({"prompts": [str(place / "asked.jsonl")], "systems": ["plain", "alignbeam"]}))
ended = [
    command("publish", "alignbeam", "--to", "secret/alignbeam", "--push"),
    command("publish", "alignbeam", "--to", place / "alignbeam"),
    command("protect", *target, *guard, "--to", "secret/guarded", "--push"),
    command("protect", *target, *guard, "--to", place / "guarded"),
    command("generate", *target, *guard, *questions, "--to", place / "told.jsonl", "--audit", place / "audit.jsonl"),
    command("evaluate", place / "recipe.yaml", *target, "--anchor", "secret/anchor", *judge, "--to", place / "results"),
    command("steer", "--model", "world/thin", "--judge", "world/judge-cls", *questions, "--to", place / "steered"),
]
steered = SteeredPrompts.from_pretrained(place / "steered", AutoModelForCausalLM.from_pretrained("world/thin", dtype="auto"))
steered.push_to_hub("secret/steered")

tokenizer = AutoTokenizer.from_pretrained("secret/specialist", token=given)
inputs = {"input_ids": torch.tensor([tokenizer(prompt)["input_ids"]]), "max_new_tokens": 20}
guarded = AutoModelForCausalLM.from_pretrained("secret/guarded", trust_remote_code=True, token=given)
guarded.generate(**inputs, token=given)
model = AutoModelForCausalLM.from_pretrained("secret/specialist", token=given)
named = {"tokenizer": tokenizer, "anchor": "secret/anchor", "judge": ModerationJudge(base_url=elsewhere + "/v1")}
for door in ("secret/alignbeam", str(place / "alignbeam")):
    model.generate(**inputs, **named, custom_generate=door, trust_remote_code=True, token=given)
alignbeam(**inputs, **named, model=model, token=given)
guarded.config.save_pretrained(place / "config")
guarded.generation_config.save_pretrained(place / "config")
kept = [vars(thing) for each in (guarded, model) for thing in (each, each.config, each.generation_config)]
kept += [vars(guarded.generate), model_loading._loaded, model_loading._built]
assert given not in repr(kept) and secret not in repr(kept)
print("SAID", json.dumps([ended, os.environ["HF_HOME"]]))
"""
)


def test_a_token_goes_to_the_hub_in_a_header_and_nowhere_else(hub, elsewhere, in_a_process, tmp_path):
    for name in ("anchor", "specialist"):
        hub.commit_folder(f"secret/{name}", WEIGHTS / name)
    given, since = SECRET[::-1], len(hub.heard)
    (conversation,) = chats_of("harmful", 1)
    done = in_a_process(SECRETIVE, SECRET, given, tmp_path, hub.elsewhere, conversation[0]["content"])
    ended, home = said_by(done)
    assert not any(ended), done.stderr[-3000:]
    written = [path for place in (tmp_path, Path(home)) for path in place.rglob("*") if path.is_file()]
    assert {"audit.jsonl", "report.json", "steered.json", "journal.jsonl", "hub_protected_generate.py"} <= {
        path.name for path in written
    }
    pushed = [data for name in ("alignbeam", "guarded", "steered") for data in hub.files(f"secret/{name}", "main").values()]
    assert len(pushed) > 50
    assert {heard.path.split("/")[-1] for heard in elsewhere.heard} == {"moderations", "model.safetensors"}
    for token in (SECRET, given):
        assert token not in done.stdout + done.stderr
        assert not any(token.encode() in path.read_bytes() for path in written)
        assert not any(token.encode() in data for data in pushed)
        assert token not in repr(elsewhere.heard)
        carrying = [heard for heard in hub.heard[since:] if token in repr(heard)]
        assert carrying
        for heard in carrying:
            headers = {name.lower(): value for name, value in heard.headers.items()}
            assert headers.pop("authorization") == f"Bearer {token}"
            assert token not in repr((headers, heard.path, heard.body))
    of_the_anchor = [heard for heard in hub.heard[since:] if heard.path.startswith("/secret/anchor/")]
    assert of_the_anchor
    assert given not in repr(of_the_anchor)  # it was given for the repositories of the target and of the code


NOWHERE = """
import json, os, socket, sys
from pathlib import Path
tried = []

def refused(*arguments, **named):
    tried.append(arguments)
    raise OSError("this machine has no network")

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, refused)
for name in ("getaddrinfo", "create_connection"):
    setattr(socket, name, refused)
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
weights, place = Path(sys.argv[1]), Path(sys.argv[2])
"""
LOCALLY = (
    NOWHERE
    + COMMANDED
    + """
path = {name: str(weights / name) for name in ("specialist", "anchor", "judge-lm", "judge-cls", "thin")}
(place / "asked.jsonl").write_text(json.dumps({"prompt": sys.argv[3]}) + chr(10))
asked = ["--file", place / "asked.jsonl"]
guard = ["--anchor", path["anchor"], "--judge", path["judge-lm"]]
ended = {
    "generate": command("generate", "--model", path["specialist"], *guard, *asked, "--to", place / "told.jsonl"),
    "steer": command("steer", "--model", path["thin"], "--judge", path["judge-cls"], *asked, "--to", place / "steered"),
    "evaluate": command("evaluate", "processor", "--limit", 2, "--systems", "guarded", "--to", place / "results"),
    "demo": command("demo", "--prompts", 2),
    "protect": command("protect", "--model", path["specialist"], *guard, "--to", place / "guarded"),
    "doctor": command("doctor", path["specialist"], path["anchor"]),
}
for strategy in ("anchor-logits", "alignbeam", "embedding-steerer"):
    ended[strategy] = command("publish", strategy, "--to", place / strategy)

doors, turns = {}, [{"role": "user", "content": sys.argv[3]}]
for target, strategy, named in json.loads(sys.argv[4]):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path[target]), AutoTokenizer.from_pretrained(path[target])
    named = {name: path[model] for name, model in named.items()}
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    how = {"custom_generate": str(place / strategy), "trust_remote_code": True, "tokenizer": tokenizer}
    doors[strategy] = model.generate(**ids, **how, **named, max_new_tokens=20).shape[0]
guarded = AutoModelForCausalLM.from_pretrained(place / "guarded", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(place / "guarded", trust_remote_code=True)
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
doors["guarded"] = guarded.generate(**ids, max_new_tokens=20).shape[0]
print("SAID", json.dumps([ended, doors, len(tried)]))
"""
)


@pytest.mark.slow
def test_what_is_here_needs_no_network(in_a_process, tmp_path):
    """Every socket is refused, and none is asked for: not even where nobody said HF_HUB_OFFLINE."""
    local = [
        [target, name, {kind: repo.split("/")[1] for kind, repo in named.items()}] for name, (target, named) in NAMED.items()
    ]
    question = chats_of("harmful", 1)[0][0]["content"]
    done = in_a_process(LOCALLY, WEIGHTS, tmp_path, question, json.dumps(local))
    ended, doors, n_tried = said_by(done)
    assert set(ended.values()) == {0}, done.stderr
    assert doors == dict.fromkeys([*ENTRIES, "guarded"], 1)
    assert n_tried == 0
    assert (tmp_path / "results" / "report.json").is_file()


OFFLINE = (
    NOWHERE
    + COMMANDED
    + """
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
anchor, judge = weights / "anchor", weights / "judge-lm"
named = ["--anchor", anchor, "--judge", judge]
ended = [
    command("publish", "alignbeam", "--to", "you/strategy", "--push"),
    command("protect", "--model", "you/model", *named, "--to", place / "guarded"),
    command("protect", "--model", weights / "specialist", "--anchor", anchor, "--judge", "you/judge", "--to", place / "guarded"),
    command("generate", "--model", "you/model", *named, "--prompt", "x"),
    command("generate", "--model", weights / "specialist", "--anchor", anchor, "--judge", "you/judge", "--prompt", "x"),
]
print("SAID", json.dumps([ended, len(tried), sorted(map(str, place.iterdir()))]))
"""
)


def test_what_the_hub_must_give_is_a_sentence_offline(in_a_process, tmp_path):
    done = in_a_process(OFFLINE, WEIGHTS, tmp_path)
    assert said_by(done) == [[2] * 5, 0, []]
    assert len(told := re.findall("^Error: (.*)", done.stderr, re.M)) == 5
    assert "Traceback" not in done.stderr
    starts = ("you/strategy could not be pushed", "you/model could not be loaded", "you/judge could not be loaded")
    assert [told[n].startswith(start) for n, start in zip((0, 1, 2, 4), (*starts, starts[2]), strict=True)] == [True] * 4
