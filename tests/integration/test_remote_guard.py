"""A guard in another program's server, `transformers serve`, judges as it does in this process."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers.servers import PATIENCE, wait_for
from helpers.strategies import chats_of, generated

pytest.importorskip("httpx", reason="the judge needs it: pip install 'hf_alignbeam[openai]'")
pytest.importorskip("fastapi", reason='`transformers serve` needs it: pip install "hf-alignbeam[serve]"')
pytest.importorskip("uvicorn", reason='`transformers serve` needs it: pip install "hf-alignbeam[serve]"')

from hf_alignbeam import LLMJudge, testbed
from hf_alignbeam.judges.remote.chat_api import ChatJudge

pytestmark = pytest.mark.slow

GUARD = str(testbed.WEIGHTS / "judge-lm")


@pytest.fixture(scope="module")
def base_url(tmp_path_factory):
    """A server of the testbed's guard."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", GUARD, "--port", str(port)]
    environment = {**os.environ, "HF_HOME": str(log.parent), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as server:
        try:
            wait_for(f"http://localhost:{port}/health", server, log)
            yield f"http://localhost:{port}/v1"
        finally:
            server.terminate()


def test_a_guard_in_a_server_gives_the_verdicts_that_it_gives_here(base_url):
    model, tokenizer = testbed.load("unaligned")
    conversations = [*chats_of("harmful", 6), *chats_of("domain", 6)]
    output, n_prompt = generated((model, tokenizer), conversations, max_new_tokens=24)
    responses = tokenizer.batch_decode(output[:, n_prompt:], skip_special_tokens=True)
    here = LLMJudge(*testbed.load("judge-lm"))
    # Version 5.23 of the server ignores requests for probabilities, and shows the header of a turn that is no assistant's.
    profile = replace(here.profile, answer_start="<|im_start|>verdict\n")
    there = ChatJudge(GUARD, base_url, profile, key_variable=None, timeout=PATIENCE, max_concurrency=2)
    expected = here(conversations, responses)
    assert set(expected.round().tolist()) == {0.0, 1.0}
    assert there(conversations, responses).tolist() == expected.round().tolist()
