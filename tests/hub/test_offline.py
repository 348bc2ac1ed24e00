"""Without a network, local models and folders work, and whatever needs the Hub is reported in one sentence."""

import json
import re

import pytest
from helpers.entries import CALLS, COMMANDS, WITHOUT_NETWORK, result_of
from helpers.strategies import chats_of

from hf_alignbeam.hub.publish import ENTRIES
from hf_alignbeam.testbed.model_store import WEIGHTS

START = (
    WITHOUT_NETWORK
    + COMMANDS
    + """
import json
from pathlib import Path
weights, place = Path(sys.argv[1]), Path(sys.argv[2])
"""
)
LOCAL = (
    START
    + """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path = {name: str(weights / name) for name in ("specialist", "anchor", "judge-lm", "judge-cls", "thin")}
(place / "prompts.jsonl").write_text(json.dumps({"prompt": sys.argv[3]}) + chr(10))
prompts = ["--file", place / "prompts.jsonl"]
guard = ["--anchor", path["anchor"], "--judge", path["judge-lm"]]
statuses = {
    "generate": command("generate", "--model", path["specialist"], *guard, *prompts, "--to", place / "answers.jsonl"),
    "steer": command("steer", "--model", path["thin"], "--judge", path["judge-cls"], *prompts, "--to", place / "steered"),
    "evaluate": command("evaluate", "processor", "--limit", 2, "--systems", "guarded", "--to", place / "results"),
    "demo": command("demo", "--prompts", 2),
    "protect": command("protect", "--model", path["specialist"], *guard, "--to", place / "guarded"),
    "doctor": command("doctor", path["specialist"], path["anchor"]),
}
for strategy in ("anchor-logits", "alignbeam", "embedding-steerer"):
    statuses[strategy] = command("publish", strategy, "--to", place / strategy)

n_answers, turns = {}, [{"role": "user", "content": sys.argv[3]}]
for strategy, (target, models) in json.loads(sys.argv[4]).items():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path[target]), AutoTokenizer.from_pretrained(path[target])
    models = {argument: path[name] for argument, name in models.items()}
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    options = {"custom_generate": str(place / strategy), "trust_remote_code": True, "tokenizer": tokenizer}
    n_answers[strategy] = model.generate(**ids, **options, **models, max_new_tokens=20).shape[0]
guarded = AutoModelForCausalLM.from_pretrained(place / "guarded", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(place / "guarded", trust_remote_code=True)
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
n_answers["guarded"] = guarded.generate(**ids, max_new_tokens=20).shape[0]
print("RESULT", json.dumps([statuses, n_answers, len(attempts)]))
"""
)


@pytest.mark.slow
def test_local_models_and_folders_need_no_network(in_a_process, tmp_path):
    """Every connection is refused and none is tried, without HF_HUB_OFFLINE too."""
    question = chats_of("harmful", 1)[0][0]["content"]
    done = in_a_process(LOCAL, WEIGHTS, tmp_path, question, json.dumps(CALLS))
    statuses, n_answers, n_attempts = result_of(done)
    assert set(statuses.values()) == {0}, done.stderr
    assert n_answers == dict.fromkeys([*ENTRIES, "guarded"], 1)
    assert n_attempts == 0
    assert (tmp_path / "results" / "report.json").is_file()


OFFLINE = (
    START
    + """
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
anchor, judge = weights / "anchor", weights / "judge-lm"
guard = ["--anchor", anchor, "--judge", judge]
statuses = [
    command("publish", "alignbeam", "--to", "you/strategy", "--push"),
    command("protect", "--model", "you/model", *guard, "--to", place / "guarded"),
    command("protect", "--model", weights / "specialist", "--anchor", anchor, "--judge", "you/judge", "--to", place / "guarded"),
    command("generate", "--model", "you/model", *guard, "--prompt", "x"),
    command("generate", "--model", weights / "specialist", "--anchor", anchor, "--judge", "you/judge", "--prompt", "x"),
]
print("RESULT", json.dumps([statuses, len(attempts), sorted(map(str, place.iterdir()))]))
"""
)


def test_commands_that_need_the_hub_report_so_offline(in_a_process, tmp_path):
    done = in_a_process(OFFLINE, WEIGHTS, tmp_path)
    assert result_of(done) == [[2] * 5, 0, []]
    assert len(errors := re.findall("^Error: (.*)", done.stderr, re.M)) == 5
    assert "Traceback" not in done.stderr
    starts = ("you/strategy could not be pushed", "you/model could not be loaded", "you/judge could not be loaded")
    assert [errors[n].startswith(start) for n, start in zip((0, 1, 2, 4), (*starts, starts[2]), strict=True)] == [True] * 4
