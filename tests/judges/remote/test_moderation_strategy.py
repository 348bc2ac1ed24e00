"""AlignBeam with a moderation judge: no unjudged text is returned, whatever the server does."""

import threading
from contextlib import nullcontext

import pytest
from helpers.moderation_server import drop, fail, hang, respond, scores_body

pytest.importorskip("httpx", reason="the judge needs it: pip install 'hf_alignbeam[openai]'")

from hf_alignbeam import AlignBeam, testbed
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.judges.remote import http_client
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language

FAULTS = {
    "429": fail(429, Retry_After="3600"),
    "500": fail(500),
    "malformed JSON": respond("{not json"),
    "no results": respond("{}"),
    "hangs": hang,
    "drops": drop,
}


class GroundTruthBehavior:
    """Gives the server the ground truth's verdicts; request number `at` and its retries get a fault instead."""

    def __init__(self, server, monkeypatch, fault=None, at=-1):
        self.truth, self.fault, self.at, self.n_requests, self.failing_text = GroundTruth(stored_language()), fault, at, 0, None
        monkeypatch.setattr(server, "begin", self.begin)
        self.lock = threading.Lock()
        self.passed = set()

    def begin(self, path, headers, body):
        text = body["input"]
        with self.lock:
            self.failing_text = text if self.n_requests == self.at else self.failing_text
            self.n_requests += 1
        if text == self.failing_text:
            return self.fault
        harm = float(self.truth.harm(text) > 0.0)
        if harm <= 0.5:
            self.passed.add(text)
        return respond(scores_body({"harm": harm}))


#: Each is handled like one of the other faults.
REDUNDANT = ("500", "no results", "drops")


@pytest.mark.parametrize(
    ("fault", "every"),
    [
        *((fault, 3) for fault in FAULTS if fault not in REDUNDANT),
        *(pytest.param(fault, 1, marks=pytest.mark.slow) for fault in FAULTS),
    ],
)
def test_no_unjudged_text_is_returned_whatever_the_server_does(
    fault, every, server, build, monkeypatch, anchor, specialist, translator
):
    """With the fault at every request in turn, only a prompt whose text met it may be refused; the others lose nothing."""
    monkeypatch.setattr(http_client, "MAX_WAIT", 0.02)
    model, tokenizer = specialist
    conversations = [testbed.prompts("validation", kind)[0].conversation for kind in ("general", "late")]
    judge, judged = build(timeout=0.15, max_retries=1), set()

    def recording_judge(conversations, responses):
        judged.update((c[0]["content"], response) for c, response in zip(conversations, responses, strict=True))
        return judge(conversations, responses)

    recording_judge.is_remote = judge.is_remote  # the target writes on while the server is at it

    def answers(**settings):
        strategy = AlignBeam(
            *anchor, tokenizer, recording_judge, judge_after=12, num_candidates=2, translation=translator, **settings
        )
        inputs = encode(conversations, tokenizer)
        output = model.generate(**inputs, custom_generate=strategy, max_new_tokens=30, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    healthy = GroundTruthBehavior(server, monkeypatch)
    expected = answers()
    assert healthy.n_requests >= 5
    for at in range(0, healthy.n_requests, every):
        judged.clear()
        faulty = GroundTruthBehavior(server, monkeypatch, FAULTS[fault], at)
        for conversation, text, before in zip(conversations, answers(), expected, strict=True):
            written = text.removesuffix(REFUSAL).strip()
            assert not written or written in faulty.passed
            assert text == before or (conversation[0]["content"], faulty.failing_text) in judged
    GroundTruthBehavior(server, monkeypatch, FAULTS[fault], 0)
    with pytest.raises(JudgeError, match="The judge gave no verdict"):
        answers(on_judge_error="raise")


@pytest.mark.parametrize(("status", "way_out"), [(401, "Check"), (404, "`model` and `base_url`"), (302, "write the final URL")])
def test_what_an_endpoint_refuses_is_said(status, way_out, server, build, monkeypatch, anchor, specialist, translator, caplog):
    monkeypatch.setattr(server, "begin", lambda path, headers, body: fail(status))
    model, tokenizer = specialist
    inputs = encode([testbed.prompts("validation", "general")[0].conversation], tokenizer)
    for policy in ("refuse", "raise"):
        guard = AlignBeam(*anchor, tokenizer, build(), translation=translator, on_judge_error=policy)
        with pytest.raises(JudgeError, match=f"status {status}.*{way_out}") if policy == "raise" else nullcontext():
            output = model.generate(**inputs, custom_generate=guard, max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(output[0], skip_special_tokens=True).endswith(REFUSAL)
    (logged,) = [record.getMessage() for record in caplog.records if record.name.endswith("judged_answers")]
    assert f"status {status}" in logged
    assert way_out in logged
