"""An access token goes to the Hub in a header and nowhere else: no file, no log, no other server."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest
from helpers.entries import COMMANDS, SECRET, result_of
from helpers.local_hub import Request
from helpers.strategies import chats_of

from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_language

pytestmark = pytest.mark.usefixtures("hub_models")


class OtherHost(BaseHTTPRequestHandler):
    """Another host: a moderation endpoint that judges by the grammar, and the storage of the hub's weights."""

    def do_GET(self):
        parts = unquote(self.path).strip("/").split("/")
        self._answer(self.server.hub.files("/".join(parts[:2]), parts[3])["/".join(parts[4:])])

    def do_POST(self):
        text = json.loads(body := self.rfile.read(int(self.headers["Content-Length"])))["input"]
        harm = GroundTruth(stored_language()).harm(text)
        self._answer(json.dumps({"id": "m", "model": "grammar", "results": [{"category_scores": {"harm": harm}}]}).encode(), body)

    def _answer(self, data, body=b""):
        self.server.requests.append(Request(self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Print nothing."""


@pytest.fixture
def other_host(hub):
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherHost) as server:
        server.hub, server.requests = hub, []
        Thread(target=server.serve_forever).start()
        hub.storage = f"http://localhost:{server.server_port}"  # another host name than the hub's
        yield server
        hub.storage = ""
        server.shutdown()


EVERY_WAY = (
    COMMANDS
    + """
import json, logging, os
from pathlib import Path
logging.basicConfig(level=logging.DEBUG)
secret, given, folder, other_host, prompt = sys.argv[1:]
os.environ |= {"HF_TOKEN": secret, "OPENAI_API_KEY": "sk-test", "no_proxy": "*"}
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from hf_alignbeam import SteeredPrompts
from hf_alignbeam.hub import model_loading
from hf_alignbeam.hub.alignbeam import alignbeam
from hf_alignbeam.judges.remote.moderation_api import ModerationJudge
transformers.utils.logging.set_verbosity_debug()
place = Path(folder)
(place / "prompts.jsonl").write_text(json.dumps({"prompt": prompt, "harmful": True}) + chr(10))

guard = ["--anchor", "secret/anchor", "--judge", "world/judge-lm"]
target, prompts = ["--model", "secret/specialist"], ["--file", place / "prompts.jsonl"]
judge, short = ["--judge", other_host + "/v1"], ["--max-new-tokens", "8"]
(place / "recipe.yaml").write_text(json.dumps({"prompts": [str(place / "prompts.jsonl")], "systems": ["plain", "alignbeam"]}))
statuses = [
    command("publish", "alignbeam", "--to", "secret/alignbeam", "--push"),
    command("publish", "alignbeam", "--to", place / "alignbeam"),
    command("protect", *target, *guard, "--to", "secret/guarded", "--push"),
    command("protect", *target, *guard, "--to", place / "guarded"),
    command("generate", *target, *guard, *prompts, *short, "--to", place / "answers.jsonl", "--audit", place / "audit.jsonl"),
    command("evaluate", place / "recipe.yaml", *target, "--anchor", "secret/anchor", *judge, *short, "--to", place / "results"),
    command("steer", "--model", "world/thin", "--judge", "world/judge-cls", *prompts, *short, "--to", place / "steered"),
]
steered = SteeredPrompts.from_pretrained(place / "steered", AutoModelForCausalLM.from_pretrained("world/thin", dtype="auto"))
steered.push_to_hub("secret/steered")

tokenizer = AutoTokenizer.from_pretrained("secret/specialist", token=given)
inputs = {"input_ids": torch.tensor([tokenizer(prompt)["input_ids"]]), "max_new_tokens": 6}
guarded = AutoModelForCausalLM.from_pretrained("secret/guarded", trust_remote_code=True, token=given)
guarded.generate(**inputs, token=given)
model = AutoModelForCausalLM.from_pretrained("secret/specialist", token=given)
arguments = {"tokenizer": tokenizer, "anchor": "secret/anchor", "judge": ModerationJudge(base_url=other_host + "/v1")}
for entry in ("secret/alignbeam", str(place / "alignbeam")):
    model.generate(**inputs, **arguments, custom_generate=entry, trust_remote_code=True, token=given)
alignbeam(**inputs, **arguments, model=model, token=given)
guarded.config.save_pretrained(place / "config")
guarded.generation_config.save_pretrained(place / "config")
kept = [vars(thing) for each in (guarded, model) for thing in (each, each.config, each.generation_config)]
kept += [vars(guarded.generate), model_loading._models, model_loading._objects]
assert given not in repr(kept) and secret not in repr(kept)
print("RESULT", json.dumps([statuses, os.environ["HF_HOME"]]))
"""
)


def test_a_token_goes_to_the_hub_in_a_header_and_nowhere_else(hub, other_host, in_a_process, tmp_path):
    for name in ("anchor", "specialist"):
        hub.commit_folder(f"secret/{name}", WEIGHTS / name)
    given, since = SECRET[::-1], len(hub.requests)
    (conversation,) = chats_of("harmful", 1)
    done = in_a_process(EVERY_WAY, SECRET, given, tmp_path, hub.storage, conversation[0]["content"])
    statuses, home = result_of(done)
    assert not any(statuses), done.stderr[-3000:]
    written = [path for place in (tmp_path, Path(home)) for path in place.rglob("*") if path.is_file()]
    assert {"audit.jsonl", "report.json", "steered.json", "journal.jsonl", "hub_protected_generate.py"} <= {
        path.name for path in written
    }
    pushed = [data for name in ("alignbeam", "guarded", "steered") for data in hub.files(f"secret/{name}", "main").values()]
    assert len(pushed) > 50
    asked = {request.path.split("/")[-1] for request in other_host.requests}
    assert asked == {"moderations", "model.safetensors", "model.protected.safetensors"}
    for token in (SECRET, given):
        assert token not in done.stdout + done.stderr
        assert not any(token.encode() in path.read_bytes() for path in written)
        assert not any(token.encode() in data for data in pushed)
        assert token not in repr(other_host.requests)
        carrying = [request for request in hub.requests[since:] if token in repr(request)]
        assert carrying
        for request in carrying:
            headers = {name.lower(): value for name, value in request.headers.items()}
            assert headers.pop("authorization") == f"Bearer {token}"
            assert token not in repr((headers, request.path, request.body))
    for_the_anchor = [request for request in hub.requests[since:] if request.path.startswith("/secret/anchor/")]
    assert for_the_anchor
    assert given not in repr(for_the_anchor)  # it was given for the repositories of the target and of the code
