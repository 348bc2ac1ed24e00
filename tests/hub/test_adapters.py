"""Adapters: a strategy added to a repository guards the calls that name it; a model is never pushed beside its guard."""

import json
import re

import pytest
from helpers.entries import COMMAND, GREEDY, WITHOUT_PACKAGE, files_of, result_of
from helpers.strategies import chats_of
from helpers.variety import mostly_slow
from huggingface_hub import ModelCard

from hf_alignbeam import AlignBeam, AnchorLogitsProcessor, EmbeddingSteerer, testbed
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub.publish import ENTRIES
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges

# peft 0.21 under transformers 5.23
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def lora(hub, hub_models):
    """The files of a LoRA on the hub, as its author left it: its configuration names its base, and pins it."""
    config = json.loads((WEIGHTS / "specialist-lora" / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "world/base", "revision": hub_models["base"]}
    hub.commit_folder("you/lora", WEIGHTS / "specialist-lora")
    hub.commit("you/lora", {"adapter_config.json": json.dumps(config).encode()})
    return hub.files("you/lora", "main")


@pytest.fixture(scope="module")
def adapted():
    return testbed.load("specialist-lora")


@pytest.mark.parametrize("strategy", mostly_slow(ENTRIES, ("alignbeam",)))
def test_an_adapters_repository_guards_the_calls_that_name_it(strategy, hub, in_a_process, lora, adapted):
    """The example of its card is run: the card stays and gets a section, and the base is the anchor."""
    for _ in range(2):  # a second push changes nothing
        done = in_a_process(COMMAND, "publish", strategy, "--to", "you/lora", "--push")
        assert done.returncode == 0, done.stderr
        sha = hub.main["you/lora"]
        assert f"revision='{sha}'" in done.stdout
    files = hub.files("you/lora", sha)
    assert {name: files[name] for name in lora if name != "README.md"} == {n: d for n, d in lora.items() if n != "README.md"}
    card = files["README.md"].decode()
    assert card.startswith(lora["README.md"].decode().rstrip())
    assert card.count("It guards the calls that name it, and no others") == 1
    assert ModelCard(card).data.to_dict() == ModelCard(lora["README.md"].decode()).data.to_dict()

    (example,) = re.findall(r"```python\n(.*?)```", card.partition("<!-- hf_alignbeam -->")[2], re.S)
    (conversation,) = chats_of("harmful", 1)
    example = example.replace("FULL_SHA_OF_A_COMMIT_YOU_HAVE_READ", sha).replace('"..."', repr(conversation[0]["content"]))
    done = in_a_process(WITHOUT_PACKAGE + example.replace("Qwen/Qwen3Guard-Gen-0.6B", "world/judge-lm"))
    assert done.returncode == 0, done.stderr
    model, tokenizer = adapted
    judge, inputs = stored_judges()["judge-lm"], encode([conversation], tokenizer)
    base = {"model": model, "anchor": "base", "anchor_tokenizer": tokenizer, "tokenizer": tokenizer}
    if strategy == "anchor-logits":
        output = model.generate(**inputs, logits_processor=[AnchorLogitsProcessor(**base)], max_new_tokens=256)
    elif strategy == "alignbeam":
        output = model.generate(**inputs, custom_generate=AlignBeam(judge=judge, **base), max_new_tokens=256)
    else:
        output = EmbeddingSteerer(model, tokenizer, judge).generate([conversation], max_new_tokens=256)
    assert done.stdout.strip() == tokenizer.decode(output[0], skip_special_tokens=True).strip()
    assert output.tolist() != model.generate(**inputs, max_new_tokens=256).tolist()


LOAD_ADAPTER = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
inputs = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[1]).items()}
models = [
    AutoModelForCausalLM.from_pretrained("you/lora", trust_remote_code=True),
    AutoPeftModelForCausalLM.from_pretrained("you/lora"),
]
print("RESULT", json.dumps([model.generate(**inputs, max_new_tokens=40, do_sample=False).tolist() for model in models]))
"""


def test_classes_that_load_an_adapter_load_no_guard(in_a_process, hub, lora, adapted):
    """As its card says, and with `trust_remote_code=True` too."""
    done = in_a_process(COMMAND, "publish", "anchor-logits", "--to", "you/lora", "--push")
    assert done.returncode == 0, done.stderr
    inputs = encode(chats_of("harmful", 1), adapted[1])
    outputs = result_of(in_a_process(LOAD_ADAPTER, json.dumps({name: rows.tolist() for name, rows in inputs.items()})))
    assert outputs == [adapted[0].generate(**inputs, **GREEDY).tolist()] * 2


LOAD_PINNED = """
import json, sys
import torch
from hf_alignbeam.evaluation.devices import load_causal
sha, inputs = sys.argv[1], {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[2]).items()}
model, tokenizer = load_causal("you/lora", torch.device("cpu"), sha, "float32")
print("RESULT", json.dumps(model.generate(**inputs, max_new_tokens=40, do_sample=False).tolist()))
"""


def test_a_pinned_adapter_is_loaded_on_its_own_base(in_a_process, hub, lora, adapted):
    """Its commit is none of the base's repository, which its configuration pins."""
    sha = hub.main["you/lora"]
    hub.commit("you/lora", {"adapter_model.safetensors": b"other"})
    inputs = encode(chats_of("harmful", 1), adapted[1])
    given = json.dumps({name: rows.tolist() for name, rows in inputs.items()})
    expected = adapted[0].generate(**inputs, **GREEDY).tolist()
    assert result_of(in_a_process(LOAD_PINNED, sha, given)) == expected
    hub.commit("you/lora", {"adapter_model.safetensors": lora["adapter_model.safetensors"]})


def test_a_strategy_is_added_to_an_adapters_folder_too(in_a_process, lora, tmp_path):
    for name, data in lora.items():
        (tmp_path / name).write_bytes(data)
    assert in_a_process(COMMAND, "publish", "alignbeam", "--to", tmp_path).returncode == 0
    files = files_of(tmp_path)
    assert {name.split("/")[0] for name in set(files) - set(lora)} == {"custom_generate"}
    assert b"hf_alignbeam -->" in files["README.md"]


def test_nothing_is_pushed_that_would_lie_unguarded_beside_its_guard(hub, in_a_process, lora, tmp_path):
    guard = ["--anchor", "world/anchor", "--judge", "world/judge-lm"]
    before = hub.commit_folder("you/model", WEIGHTS / "specialist")
    for command in (["publish", "alignbeam"], ["protect", "--model", "world/specialist", *guard]):
        done = in_a_process(COMMAND, *command, "--to", "you/model", "--push")
        assert done.returncode == 2
        assert "must be new, or pushed by this command, but you/model holds " in done.stderr
        assert "model.safetensors" in done.stderr
    assert hub.main["you/model"] == before
    done = in_a_process(COMMAND, "protect", "--model", "you/lora", *guard, "--to", tmp_path / "made")
    assert done.returncode == 2
    assert "you/lora is an adapter, and no loader of adapters loads a guard" in done.stderr
    assert "alignbeam publish alignbeam --to you/lora" in done.stderr
    local = ["--anchor", WEIGHTS / "anchor", "--judge", "world/judge-lm"]
    done = in_a_process(COMMAND, "protect", "--model", "world/specialist", *local, "--to", "you/new", "--push")
    assert done.returncode == 2
    assert "--anchor must be a Hub id with --push" in done.stderr
    assert "you/new" not in hub.main
    assert not (tmp_path / "made").exists()
