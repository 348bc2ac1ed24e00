"""What tests of Hub entries share: scripts for other processes, models on the local hub, a criterion with per-row state."""

import json
from pathlib import Path

from transformers import StoppingCriteria

from hf_alignbeam.testbed.model_store import WEIGHTS

ANCHOR, TARGET, JUDGE = str(WEIGHTS / "anchor"), str(WEIGHTS / "specialist"), str(WEIGHTS / "judge-lm")
#: The anchor and the judge of `alignbeam` and of a protected model.
GUARD = {"anchor": ANCHOR, "judge": JUDGE}
TRUSTED = {"trust_remote_code": True}
GREEDY = {"max_new_tokens": 40, "do_sample": False}
#: An access token, which must appear nowhere but in the header of a request to the hub.
SECRET = "hf_" + "SeCrEt" * 5
#: The testbed's models that the local hub serves, as `world/NAME`.
HUB_MODELS = ("anchor", "specialist", "thin", "base", "judge-lm", "judge-cls")
#: For each strategy, its target, and the models that a call of its folder names.
CALLS = {
    "anchor-logits": ("specialist", {"anchor": "anchor"}),
    "alignbeam": ("specialist", {"anchor": "anchor", "judge": "judge-lm"}),
    "embedding-steerer": ("thin", {"judge": "judge-cls", "accept": "anchor"}),
}

#: Makes the package impossible to import.
WITHOUT_PACKAGE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_alignbeam":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""
#: Refuses every connection; `attempts` holds those that were tried.
WITHOUT_NETWORK = """
import socket
attempts = []

def refuse(*arguments, **named):
    attempts.append(arguments)
    raise OSError("this machine has no network")

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "create_connection"):
    setattr(socket, name, refuse)
"""
#: `command(...)` runs a command and returns its status; the pauses before a failed request is repeated are left out.
COMMANDS = """
import sys, time
from hf_alignbeam.cli.app import app
time.sleep = lambda seconds: None

def command(*arguments):
    try:
        app([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code or 0
"""
#: Runs one command, given as arguments.
COMMAND = COMMANDS + "sys.exit(command(*sys.argv[1:]))"
#: Loads a model by name and prints what it generates, without the package.
GENERATE = (
    WITHOUT_PACKAGE
    + """
import json
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
name, load, inputs, options = sys.argv[1], *map(json.loads, sys.argv[2:])
model = AutoModelForCausalLM.from_pretrained(name, **load)
if "custom_generate" in options:
    options |= {"tokenizer": AutoTokenizer.from_pretrained(name), "trust_remote_code": True}
inputs = {key: torch.tensor(rows) for key, rows in inputs.items()}
output = model.generate(**inputs, **options, max_new_tokens=40, do_sample=False)
print("RESULT", json.dumps(output.tolist()))
"""
)


def result_of(done):
    """The JSON value that a script printed behind the word RESULT."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Do you wish" not in done.stdout
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).removeprefix("RESULT "))


def files_of(folder):
    """The contents of a folder's files by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


class PerRowCriterion(StoppingCriteria):
    """Stops at a text and keeps one verdict per row of the batch that it was made for, as the criterion of lm_eval 0.4.13."""

    def __init__(self, text, tokenizer, n_prompt, n_rows):
        self.text, self.tokenizer, self.n_prompt = text, tokenizer, n_prompt
        self.n_last = len(tokenizer.encode(text, add_special_tokens=False)) + 2
        self.done_tracker = [False] * n_rows

    def __call__(self, input_ids, scores, **kwargs):
        ends = self.tokenizer.batch_decode(input_ids[:, self.n_prompt :][:, -self.n_last :])
        for row, done in enumerate(self.done_tracker):
            self.done_tracker[row] = done or self.text in ends[row]
        return False not in self.done_tracker
