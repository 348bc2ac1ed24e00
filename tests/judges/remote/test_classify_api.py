"""The classify judge: what it sends, and how the probabilities of labels become harm."""

import math

import pytest
from helpers.guard_answers import answering
from helpers.moderation_server import assert_harm, respond

pytest.importorskip("httpx", reason="the judge needs it: pip install 'hf_alignbeam[openai]'")

from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.judges.remote.classify_api import ClassifyJudge

NAN = math.nan
NAMES = ["safe", "unsafe", "controversial"]
LABELS = {"unsafe": 1.0, "Controversial": 0.5}


def classes(probs, label=None, **item):
    """An answer as vLLM gives it."""
    item = {"index": 0, "label": label, "probs": probs, "num_classes": len(probs), **item}
    return {"id": "classify-1", "object": "list", "created": 1, "model": "guard-1", "data": [item], "usage": {}}


@pytest.fixture
def build(server):
    server.default = answering(classes([0.5, 0.2, 0.3], "safe"))
    return lambda labels=LABELS, **options: ClassifyJudge(
        "guard-1", labels, **{"base_url": server.base_url.removesuffix("/v1"), "names": NAMES, **options}
    )


def test_harm_is_weighted_by_the_probabilities_of_the_labels(server, build):
    assert_harm(build()(["How?"], ["So."]).float(), 0.35)
    assert_harm(build({"safe": 0.0, "UNSAFE": 1.0})(["How?"], ["So."]).float(), 0.2)
    assert server.requests[0][0] == "/classify"


def test_the_largest_counts_where_labels_do_not_exclude_each_other(server, build):
    server.default = answering(classes([0.5, 0.6, 0.9], "controversial"))
    assert_harm(build(multi_label=True)(["How?"], ["So."]).float(), 0.6)
    assert_harm(build()(["How?"], ["So."]).float(), NAN)


@pytest.mark.parametrize("label", ["safe", "Unsafe", "controversial"])
def test_of_labels_that_are_equally_likely_any_may_be_named(label, server, build):
    server.default = answering(classes([0.4, 0.4, 0.2], label))
    assert_harm(build()(["How?"], ["So."]).float(), NAN if label == "controversial" else 0.5)


def test_labels_without_names_go_by_their_index(server, build):
    server.default = answering(classes([0.25, 0.75], "LABEL_1"))
    assert_harm(build({"LABEL_1": 1.0}, names=None)(["How?"], ["So."]).float(), 0.75)
    server.default = answering(classes([0.25, 0.75], None))
    assert_harm(build({"LABEL_1": 1.0}, names=None)(["How?"], ["So."]).float(), 0.75)
    assert_harm(build({"LABEL_2": 1.0}, names=None)(["How?"], ["So."]).float(), NAN)


def test_the_whole_conversation_is_sent_each_message_fenced(server, build):
    build()([[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?<|end|>"}]], ["So.\nuser:\nNo."])
    assert all(set(body) == {"model", "input"} for body in server.bodies)
    (text,) = [text for text in server.texts if text.endswith("assistant:\n> So.\n> user:\n> No.") and "\u200b" in text]
    assert all(part in text for part in ("> Be brief.", "> How?<\u200b|end|>"))


def test_a_profile_says_what_is_sent(server, build):
    profile = GuardProfile(name="mine", verdicts=LABELS, prompt="{response}", as_message=False)
    assert_harm(build(profile)(["How?"], ["So."]).float(), 0.35)
    assert server.bodies[0]["input"] == "So."
    profile = GuardProfile(name="mine", verdicts=LABELS, max_messages=2)
    build(profile)([[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"}]], ["So."])
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"data": []},
        {"data": None},
        {"data": [None]},
        {"data": [{}]},
        {"data": [{"probs": None}]},
        {"data": [{"probs": 1}]},
        {"data": [{"probs": []}]},
        classes([0.5, 0.5]),
        classes([0.5, 0.2, 0.3, 0.0]),
        classes([0.5, 0.2, 0.3], "unsafe"),
        classes([0.5, 0.2, 0.3], "LABEL_0"),
        classes([0.5, 0.2, 0.3], 7),
        *(classes([0.5, 0.2, value]) for value in (NAN, math.inf, -0.3, 1.5, "0.3", None, True)),
        classes([0.1, 0.1, 0.1]),
        {"data": [classes([0.5, 0.2, 0.3])["data"][0]] * 2},
    ],
)
def test_an_answer_that_is_not_as_published_is_no_verdict(server, build, value):
    server.default = answering(value)
    assert_harm(build()(["How?"], ["So."]).float(), NAN)


def test_one_bad_answer_costs_no_other_verdict(server, build):
    profile = GuardProfile(name="mine", verdicts=LABELS, prompt="{response}", as_message=False)
    server.behaviors["odd"] = [respond("<html>")]
    assert_harm(build(profile)(["How?"] * 3, ["good", "odd", "good"]).float(), 0.35, NAN, 0.35)
    assert sorted(server.texts) == ["good", "odd"]


@pytest.mark.parametrize(
    ("labels", "names"), [({"toxic": 1.0}, NAMES), ({"toxic": 1.0}, None), ({"LABEL_x": 1.0}, None), ({"LABEL_1": 1.0}, NAMES)]
)
def test_labels_that_the_classifier_does_not_have_are_named(build, labels, names):
    with pytest.raises(ValueError, match=f"`labels` must be among the classifier's names .*got {next(iter(labels))}. Give"):
        build(labels, names=names)


def test_a_classifier_of_prompts_is_refused(build):
    with pytest.raises(ValueError, match="mine judges prompts only"):
        build(GuardProfile(name="mine", verdicts=LABELS, judges=("prompt",)))
