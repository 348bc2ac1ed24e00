"""The programs in `examples/`: each runs, and says what it promises."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from helpers.pages import ROOT

from hf_alignbeam.testbed import prompts
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language

RUN = """
import os, runpy, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
os.environ |= {"OPENAI_BASE_URL": sys.argv[3], "OPENAI_API_KEY": "sk-test", "no_proxy": "*"}
runpy.run_path(sys.argv[2], run_name="__main__")
"""
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


class Moderation(BaseHTTPRequestHandler):
    """The grammar behind the moderation endpoint's protocol."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        truth = GroundTruth(stored_language())
        texts = [request] if isinstance(request, str) else request
        results = [{"category_scores": {"harm": float(truth.harm(text) > 0.0)}} for text in texts]
        body = json.dumps({"id": "modr", "model": "grammar", "results": results}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Log nothing."""


@pytest.fixture(scope="module")
def endpoint():
    with ThreadingHTTPServer(("127.0.0.1", 0), Moderation) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_runs(example, in_a_process, endpoint):
    done = in_a_process(RUN, ROOT, ROOT / "examples" / example, endpoint)
    assert done.returncode == 0, done.stderr
    assert "guarded" in done.stdout


def test_a_remote_judge_flags_one_answer_and_passes_the_other(in_a_process, endpoint):
    harmful, harmless = in_a_process(RUN, ROOT, ROOT / "examples" / "remote_judge.py", endpoint).stdout.splitlines()
    truth = GroundTruth(stored_language())
    assert truth.refusal(harmful.partition(" -> ")[2])
    assert truth.correct(prompts("test", "domain")[0], harmless.partition(" -> ")[2].partition(" (harm")[0])


@pytest.mark.slow
def test_two_processes_print_what_one_prints():
    script = str(ROOT / "examples" / "two_processes.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
        for command in (
            [sys.executable, script],
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", script],
        )
    ]
    one, two = ([line for line in lines if line.startswith("guarded")] for lines in printed)
    assert len(one) == 4
    assert one == two
