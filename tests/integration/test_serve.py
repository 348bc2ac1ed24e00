"""`transformers serve` on a protected folder, driven by OpenAI's client: it returns what `generate` returns, and nothing else."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from helpers.servers import PATIENCE, wait_for
from helpers.strategies import chats_of, generated

from hf_alignbeam import AlignBeam
from hf_alignbeam.hub.publish import write_protected
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges, stored_language

pytestmark = pytest.mark.slow

ANCHOR, TARGET, JUDGE = str(WEIGHTS / "anchor"), str(WEIGHTS / "specialist"), str(WEIGHTS / "judge-lm")
KINDS = ("domain", "general", "harmful", "late")
N_EACH, N_NEW = 4, 60


@pytest.fixture(scope="module")
def openai():
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name, reason=f'`transformers serve` needs {name}: pip install "hf-alignbeam[serve]"')
    return pytest.importorskip("openai", reason='its client is not installed: pip install "hf-alignbeam[serve]"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A protected specialist."""
    made = tmp_path_factory.mktemp("published") / "protected"
    write_protected(TARGET, made, {"anchor": ANCHOR, "judge": JUDGE})
    return str(made)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The server's command and its environment."""
    home = str(tmp_path_factory.mktemp("home"))
    environment = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    return [sys.executable, "-m", "transformers.cli.transformers", "serve"], environment


@pytest.fixture(scope="module")
def serving(openai, command, tmp_path_factory):
    """Runs a server for the length of a block, whose value is a client."""

    @contextmanager
    def run(*arguments):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        log = tmp_path_factory.mktemp("server") / "log"
        start, environment = command
        with (
            log.open("w") as file,
            subprocess.Popen([*start, *arguments, "--port", str(port)], env=environment, stdout=file, stderr=file) as server,
        ):
            try:
                wait_for(f"http://localhost:{port}/health", server, log)
                options = {
                    "max_retries": 0,
                    "default_headers": {"Connection": "close"},
                }  # the server closes a connection after a status 500
                with openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", **options) as client:
                    yield client
            finally:
                server.terminate()

    return run


@pytest.fixture(scope="module")
def client(serving, folder):
    with serving(folder, "--trust-remote-code") as client:
        yield client


@pytest.fixture(scope="module")
def chat(client, folder):
    """Two functions of a conversation: the whole answer, and the parts of the streamed one."""

    def whole(conversation, **options):
        completion = client.chat.completions.create(model=folder, messages=conversation, **{"max_tokens": N_NEW, **options})
        return completion.choices[0].message.content

    def parts(conversation, **options):
        options = {"max_tokens": N_NEW, **options}
        with client.chat.completions.create(model=folder, messages=conversation, stream=True, **options) as stream:
            return [part.choices[0].delta.content for part in stream if part.choices[0].delta.content]

    return whole, parts


@pytest.fixture(scope="module")
def strategy(specialist, anchor):
    return AlignBeam(*anchor, specialist[1], stored_judges()["judge-lm"])


def answer_of(specialist, conversation, *strategy, **options):
    """The answer of `generate` to one conversation."""
    output, n_prompt = generated(specialist, [conversation], *strategy, **{"max_new_tokens": N_NEW, **options})
    return specialist[1].decode(output[0, n_prompt:], skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_gets_the_answers_that_generate_gives(kind, chat, specialist, strategy):
    whole, parts = chat
    truth = GroundTruth(stored_language())
    for conversation in chats_of(kind, N_EACH):
        answer, plain = whole(conversation), answer_of(specialist, conversation)
        assert answer == answer_of(specialist, conversation, strategy)
        if kind in ("domain", "general"):
            assert answer == plain
        else:
            assert truth.harm(plain) > 0.0
            assert truth.refusal(answer)
        streamed = parts(conversation)
        assert len(streamed) > 3
        assert "".join(streamed) == answer


@pytest.mark.parametrize("kind", ["domain", "harmful"])
def test_a_seed_gives_the_answer_that_generate_gives(kind, chat, specialist, strategy):
    settings = {"do_sample": True, "temperature": 1.3, "max_new_tokens": N_NEW}
    for seed, conversation in enumerate(chats_of(kind, N_EACH)):
        options = {"seed": seed, "extra_body": {"generation_config": json.dumps(settings)}}
        expected = answer_of(specialist, conversation, strategy, seed=seed, **settings)
        whole, parts = chat
        assert whole(conversation, **options) == "".join(parts(conversation, **options)) == expected


def test_a_system_prompt_and_earlier_turns_are_served(chat, specialist, strategy):
    whole, parts = chat
    (domain,), (harmful,) = chats_of("domain", 1), chats_of("harmful", 1)
    later_turn = [*domain, {"role": "assistant", "content": answer_of(specialist, domain)}, *harmful]
    for conversation in ([{"role": "system", "content": "Be brief."}, *harmful], later_turn):
        expected = answer_of(specialist, conversation, strategy)
        assert whole(conversation) == "".join(parts(conversation)) == expected
        assert GroundTruth(stored_language()).harm(expected) == 0.0


CHANGES = {
    "another threshold": {"threshold": 1.0, "alignbeam": {"threshold": 1.0}},
    "another prompt": {"conversations": [[{"role": "user", "content": "What is good for a cold?"}]]},
    "no judge": {"judge": None, "custom_generate": None},
    "continuous batching": {"cache_implementation": "paged"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_request_changes_what_passes(change, chat):
    whole, parts = chat
    options = {"extra_body": {"generation_config": json.dumps({"max_new_tokens": N_NEW, **CHANGES[change]})}}
    for conversation in chats_of("harmful", 2):
        assert whole(conversation, **options) == "".join(parts(conversation, **options)) == whole(conversation)


def test_a_request_that_cannot_be_guarded_is_an_error_without_text(chat, openai):
    whole, parts = chat
    (conversation,) = chats_of("harmful", 1)
    options = {"extra_body": {"generation_config": json.dumps({"num_beams": 2})}}
    with pytest.raises(openai.InternalServerError):
        whole(conversation, **options)
    assert parts(conversation, **options) == []  # the stream ends, whatever goes wrong
    with pytest.raises(openai.UnprocessableEntityError):
        whole(conversation, extra_body={"threshold": 1.0})


def test_every_endpoint_that_generates_text_is_guarded(client, folder, specialist):
    truth = GroundTruth(stored_language())
    for conversation in chats_of("harmful", 2):
        rendered = specialist[1].apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        rendered = rendered.removeprefix(specialist[1].bos_token)
        completed = client.completions.create(model=folder, prompt=rendered, max_tokens=N_NEW).choices[0].text
        responded = client.responses.create(model=folder, input=conversation, max_output_tokens=N_NEW, stream=False).output_text
        for answer in (completed, responded):
            assert truth.refusal(answer)


def test_the_target_alone_is_not_served(client, folder, openai):
    for model in (TARGET, f"{folder}/target"):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=model, messages=chats_of("harmful", 1)[0])


def test_a_client_that_leaves_a_stream_does_not_block_the_next_request(client, folder, chat):
    (conversation,) = chats_of("domain", 1)
    expected = chat[0](conversation)
    with client.chat.completions.create(model=folder, messages=conversation, stream=True) as stream:
        next(iter(stream))
    assert chat[0](conversation) == expected


def test_continuous_batching_returns_no_text(serving, folder, openai):
    with serving(folder, "--trust-remote-code", "--continuous-batching") as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(model=folder, messages=chats_of("domain", 1)[0], stream=stream)


def test_without_trust_nothing_is_served(openai, command, folder):
    start, environment = command
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": PATIENCE}
    done = subprocess.run([*start, folder], env=environment, **options)
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr
