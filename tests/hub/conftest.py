"""Published folders, models on the local hub, and what the objects say that the folders must equal."""

from functools import cache

import pytest
from helpers.entries import CALLS, GREEDY, GUARD, HUB_MODELS, TARGET
from helpers.searches import framed
from helpers.strategies import chats_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_alignbeam import AlignBeam, AnchorLogitsProcessor, EmbeddingSteerer, PlausibleAnswer, testbed
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub.publish import write_protected, write_strategy
from hf_alignbeam.testbed.model_store import WEIGHTS


@pytest.fixture(scope="session")
def hub_models(hub):
    """The commits of the testbed's models on the local hub, by name."""
    return {name: hub.commit_folder(f"world/{name}", WEIGHTS / name) for name in HUB_MODELS}


@pytest.fixture(scope="session")
def thin():
    """The testbed's model that refuses plain requests only: (model, tokenizer)."""
    return testbed.load("thin")


@pytest.fixture(scope="session")
def strategy_folder(tmp_path_factory):
    """The published folder of a strategy, by name; each is written once."""

    @cache
    def written(strategy):
        folder = tmp_path_factory.mktemp("strategies") / strategy
        write_strategy(strategy, folder)
        return str(folder)

    return written


@pytest.fixture(scope="session")
def protected_folder(tmp_path_factory):
    """A protected specialist, on the disk."""
    folder = tmp_path_factory.mktemp("protected") / "protected"
    write_protected(TARGET, folder, GUARD)
    return str(folder)


@pytest.fixture(scope="session")
def alignbeam(specialist, anchor, judge_lm):
    """The strategy of the protected specialist, as an object."""
    return AlignBeam(*anchor, specialist[1], judge_lm)


@pytest.fixture(scope="session")
def steerer(thin, anchor, judges):
    """An embedding search as an object."""
    return EmbeddingSteerer(*thin, judges["judge-cls"], PlausibleAnswer(*anchor))


@pytest.fixture(scope="session")
def object_outputs(specialist, thin, anchor, alignbeam, steerer):
    """For each strategy, two encoded prompts and the ids that the object generates for them, all as lists."""
    options = {
        "anchor-logits": {"logits_processor": [AnchorLogitsProcessor(*anchor, specialist[1])]},
        "alignbeam": {"custom_generate": alignbeam},
    }
    inputs, outputs = {}, {}
    for name, option in options.items():
        inputs[name] = encode(chats_of("harmful", 1) + chats_of("general", 1), specialist[1])
        outputs[name] = specialist[0].generate(**inputs[name], **option, **GREEDY)
    prompts = framed(1) + chats_of("general", 1)
    inputs["embedding-steerer"] = encode(prompts, thin[1])
    outputs["embedding-steerer"] = steerer.generate(prompts, **GREEDY)
    for name, (target, _) in CALLS.items():
        model = {"specialist": specialist, "thin": thin}[target][0]
        assert outputs[name].tolist() != model.generate(**inputs[name], **GREEDY).tolist()  # every strategy has work to do
    return {name: ({key: rows.tolist() for key, rows in inputs[name].items()}, outputs[name].tolist()) for name in CALLS}


@pytest.fixture(scope="session")
def protected(protected_folder):
    """The protected specialist as it is loaded: (model, tokenizer)."""
    model = AutoModelForCausalLM.from_pretrained(protected_folder, trust_remote_code=True)
    return model, AutoTokenizer.from_pretrained(protected_folder, padding_side="left")
