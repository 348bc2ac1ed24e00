"""Tiny models and toy tokenizers, built once a session, the testbed's trained ones, and processes beside this one."""

import copy
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models, and several processes of tests
os.environ["HF_ALIGNBEAM_CACHE"] = ""  # no test depends on what an earlier one has computed, or writes into the user's folder

import pytest
import torch
from helpers import local_hub
from helpers.strategies import KINDS, chats_of
from hypothesis import settings
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    dynamic_module_utils,
)

from hf_alignbeam import testbed
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.inference.engines import KeyValueEngine
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.testbed import tokenizers as toy
from hf_alignbeam.testbed.language import SPLITS, language
from hf_alignbeam.testbed.model_store import stored_judges
from hf_alignbeam.tokenization.vocabulary import token_bytes

for profile, n_examples in (("quick", 40), ("whole", 100)):
    settings.register_profile(profile, deadline=None, derandomize=True, max_examples=n_examples)

TEST_DATA = os.environ.get("HF_ALIGNBEAM_TEST_DATA")
TOKENIZERS = ("gpt2", "llama2", "llama3", "qwen3", "gemma2", "falcon", "t5", "deepseek_v3")


def pytest_configure(config):
    """Fewer examples of a property where slow tests are left out."""
    settings.load_profile("quick" if "not slow" in config.option.markexpr else "whole")


@pytest.fixture(scope="session", autouse=True)
def own_modules(tmp_path_factory):
    """Code that is loaded lies in a folder of this process alone: another one may be writing the same files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture
def full_at():
    """A context in which no file can grow beyond a number of bytes, as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system has no limits of a process")

    @contextmanager
    def limited(n_bytes):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    return limited


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    """The folder of real tokenizers."""
    if TEST_DATA is None:
        pytest.skip("HF_ALIGNBEAM_TEST_DATA is unset: it must name a folder that holds tokenizers/")
    return Path(TEST_DATA) / "tokenizers"


@pytest.fixture(scope="session")
def real_tokenizer(tokenizer_folder):
    """Real tokenizers by name, each read once."""
    return cache(lambda name: AutoTokenizer.from_pretrained(tokenizer_folder / name))


@pytest.fixture(scope="session")
def real_tokens(real_tokenizer):
    """The bytes of a real tokenizer's tokens by its name, each table made once."""
    return cache(lambda name: token_bytes(real_tokenizer(name)))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [prompt.text for prompt in language(0).prompts(SPLITS[0], "harmful")[:400]]


@pytest.fixture(scope="session")
def byte_tokenizer(texts):
    """Byte-level BPE with ChatML, a BOS and few merges."""
    return toy.byte_level(texts, n_merges=120)


@pytest.fixture(scope="session")
def piece_tokenizer(texts):
    """SentencePiece-style BPE with byte fallback and instruction brackets."""
    return toy.sentencepiece_style(texts, n_pieces=300)


@pytest.fixture(scope="session")
def tiny_qwen(byte_tokenizer):
    return tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=1, head_dim=8)


@pytest.fixture(scope="session")
def tiny_llama(piece_tokenizer):
    return tiny(LlamaForCausalLM, LlamaConfig, piece_tokenizer, seed=2)


def tiny(model_class, config_class, tokenizer, seed: int, **config):
    """A random decoder of two layers, its weights large enough that no two logits are nearly equal."""
    torch.manual_seed(seed)
    model = model_class(
        config_class(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    )
    return model.eval()


def engine(model):
    """A cache for one batch of a model's texts."""
    return KeyValueEngine(model)


@pytest.fixture(scope="session")
def specialist():
    """The testbed's unsafe specialist: (model, tokenizer)."""
    return testbed.load("specialist")


@pytest.fixture(scope="session")
def anchor():
    """The testbed's safe anchor: (model, tokenizer)."""
    return testbed.load("anchor")


@pytest.fixture(scope="session")
def renumbered_anchor(anchor):
    """The anchor with its ordinary tokens renumbered: the same model to any reader of text, another to a reader of ids."""
    return renumber(*anchor)


def renumber(model, tokenizer, seed: int = 0):
    """A copy of a model and its byte-level tokenizer in which every ordinary token has another id."""
    generator = torch.Generator().manual_seed(seed)
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in tokenizer.added_tokens_decoder])
    new_id = torch.arange(len(tokenizer))
    new_id[ordinary] = ordinary[torch.randperm(len(ordinary), generator=generator)]
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] = {token: int(new_id[i]) for token, i in state["model"]["vocab"].items()}
    twin_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        padding_side="left",
        chat_template=tokenizer.chat_template,
    )
    twin = copy.deepcopy(model)
    weights = model.get_input_embeddings().weight.data
    twin.get_input_embeddings().weight.data[new_id] = weights
    if twin.get_output_embeddings().weight is not twin.get_input_embeddings().weight:
        twin.get_output_embeddings().weight.data[new_id] = model.get_output_embeddings().weight.data
    return twin, twin_tokenizer


@pytest.fixture(scope="session")
def hub():
    with local_hub.running() as running:
        yield running


@pytest.fixture(scope="session")
def mixed():
    """Prompts of every kind, so that some rows of a batch are flagged and others are not."""
    return [conversation for kind in KINDS for conversation in chats_of(kind, 2)]


@pytest.fixture(scope="session")
def one_of_each(mixed):
    """A prompt of each kind."""
    return mixed[:: len(mixed) // len(KINDS)]


@pytest.fixture(scope="session")
def judges():
    """The testbed's judges by name, loaded once."""
    return stored_judges()


@pytest.fixture(scope="session")
def oracle(judges):
    """The testbed's judge that knows the truth."""
    return judges["oracle"]


@pytest.fixture(scope="session")
def judge_lm(judges):
    """The testbed's language model as a judge."""
    return judges["judge-lm"]


@pytest.fixture(scope="session")
def translator(anchor, specialist):
    """The translator from the anchor's vocabulary to the specialist's, built once."""
    return AnchorLogitsProcessor(*anchor, specialist[1]).translator


@pytest.fixture(scope="session")
def strategy(anchor, specialist, translator):
    """Makes strategies for the specialist, from a judge and settings."""

    def make(judge, **settings):
        return AlignBeam(*anchor, specialist[1], judge, **{"translation": translator, **settings})

    return make


FORKS = """
import json, os, sys, traceback
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[1]  # what one process has compiled, the next ones read
import accelerate, gc, jinja2, peft, pydantic, rich.progress, scipy.optimize, scipy.stats, torch, typer, yaml
import transformers.models.llama.modeling_llama, transformers.models.qwen3.modeling_qwen3
from transformers import AutoModelForCausalLM, AutoTokenizer
gc.collect(), gc.freeze()  # a child that looked at these objects would copy their memory
for line in sys.stdin:
    code, arguments, out, err = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for number, name, way in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(name, way | os.O_CREAT | os.O_TRUNC), number)
    sys.argv, failed = ["-c", *arguments], 0
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as ended:
        failed = ended.code or 0
    except BaseException:
        traceback.print_exc()
        failed = 1
    sys.stdout.flush()
    os._exit(failed)
os._exit(0)  # an interpreter with torch takes a second to end
"""


@pytest.fixture(scope="session")
def in_a_process(hub, tmp_path_factory):
    """Runs code before the hub, in a process that has imported transformers and nothing of ours: all fork from one."""
    place = tmp_path_factory.mktemp("processes")
    files = place / "out", place / "err"
    online = {"HF_ENDPOINT": hub.url, "HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test"}
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", **online}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", FORKS, str(place / "compiled")]
    with subprocess.Popen(command, env=environment, text=True, **pipes) as parent:

        def run(code, *arguments):
            parent.stdin.write(json.dumps([code, list(map(str, arguments)), *map(str, files)]) + "\n")
            parent.stdin.flush()
            returncode = int(parent.stdout.readline())
            return subprocess.CompletedProcess(arguments, returncode, *(file.read_text() for file in files))

        yield run
