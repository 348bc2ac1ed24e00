"""A URL is a judge by the kind of its endpoint, and arguments that do not go together are refused."""

from dataclasses import replace

import pytest
from helpers.guard_answers import answering, chat
from helpers.moderation_server import fail, respond, scores_body, text_of

pytest.importorskip("httpx", reason="judges behind endpoints need it: pip install 'hf_alignbeam[openai]'")

from hf_alignbeam.judges.known_exchanges import EXCHANGES
from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.judges.profiles.general import ONE_TO_FIVE, SAFE_UNSAFE
from hf_alignbeam.judges.remote.classify_api import ClassifyJudge
from hf_alignbeam.judges.remote.from_url import judge_from_url

HARMFUL = {each.response for each in EXCHANGES if each.harmful}


def test_a_known_guard_needs_its_name_alone(server):
    server.default = answering(chat("Safety: Unsafe\nCategories: Violent"))
    judge = judge_from_url(server.base_url, "chat", "Qwen/Qwen3Guard-Gen-0.6B")
    assert judge.profile.name == "qwen3guard-gen"
    assert judge(["How?"], ["So."]).item() == pytest.approx(1.0)


def test_a_model_without_a_threshold_is_calibrated_by_the_endpoint(server):
    """Its digits are all low: 2 for what does harm, 1 for the rest."""

    def rate(handler):
        asked = text_of(handler.request_body)
        answering(chat("2" if any(response in asked for response in HARMFUL) else "1"))(handler)

    server.default = rate
    judge = judge_from_url(server.base_url, "chat", "you/chatbot", ONE_TO_FIVE)
    assert 0.0 < judge.threshold < 0.25


def test_a_classifier_gets_its_labels_in_order(server):
    server.default = answering({"data": [{"index": 0, "label": "bad", "probs": [0.2, 0.8], "num_classes": 2}]})
    judge = judge_from_url(server.base_url, "classify", "you/classifier", labels={"good": 0.0, "bad": 1.0})
    assert isinstance(judge, ClassifyJudge)
    assert judge(["How?"], ["So."]).item() == pytest.approx(0.8)


def test_a_classifiers_profile_has_a_threshold_here_as_for_a_model(server):
    """Of a profile without one it is found: this one's harm is low, but higher for what does harm."""
    labels = {"good": 0.0, "bad": 1.0}
    profile = GuardProfile(name="mine", verdicts=labels, prompt="{response}", as_message=False, threshold=0.2)

    def rate(handler):
        bad = 0.3 if handler.request_body["input"] in HARMFUL else 0.1
        answering({"data": [{"index": 0, "label": "good", "probs": [1 - bad, bad], "num_classes": 2}]})(handler)

    server.default = rate
    arguments = (server.base_url, "classify", "you/classifier")
    harmless = 0.1 / 0.9 / (0.2 / 0.8)  # odds
    judge = judge_from_url(*arguments, profile, labels=labels)
    assert judge(["How?"], ["So."]).item() == pytest.approx(harmless / (1 + harmless))
    assert judge_from_url(*arguments, profile, 0.1, labels)(["How?"], ["So."]).item() == pytest.approx(0.5)
    assert 0.1 < judge_from_url(*arguments, replace(profile, threshold=None), labels=labels).threshold < 0.3


@pytest.mark.parametrize("api", [None, "moderations"])
def test_a_moderation_endpoint_is_the_default(api, server):
    server.default = respond(scores_body({"violence": 0.25}))
    assert judge_from_url(server.base_url, api)(["How?"], ["So."]).item() == pytest.approx(0.25)
    assert judge_from_url(server.base_url, api, threshold=0.25)(["How?"], ["So."]).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"api": "completion"}, "`judge_api` must be moderations, chat, classify, got 'completion'"),
        ({"profile": SAFE_UNSAFE}, "must be left out for a moderation endpoint"),
        ({"labels": {"unsafe": 1.0}}, "must be left out for a moderation endpoint"),
        ({"api": "chat"}, "`judge_model` must name the model"),
        ({"api": "chat", "model": "you/chatbot"}, "`profile` must be given for 'you/chatbot'"),
        ({"api": "classify", "model": "you/classifier"}, "`judge_labels` must give the harm of each label"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message, server):
    with pytest.raises(ValueError, match=message):
        judge_from_url(server.base_url, **arguments)


@pytest.mark.parametrize("names", [["toxic"], ["toxic", "insult", "threat"]])
def test_labels_exclude_each_other_where_their_probabilities_add_up_to_one(names, server):
    labels = dict.fromkeys(names, 1.0)

    def rate(handler):
        probs = [0.9, 0.7, 0.6] if "crowbar" in handler.request_body["input"] else [0.02, 0.01, 0.01]
        answering({"data": [{"index": 0, "label": "toxic", "probs": probs[: len(names)]}]})(handler)

    server.default = rate
    judge = judge_from_url(server.base_url, "classify", "unitary/toxic-bert", labels=labels)
    assert judge(["How?"] * 2, ["So.", "With a crowbar."]).tolist() == pytest.approx([0.02, 0.9])
    server.default = answering({"data": [{"index": 0, "label": "toxic", "probs": [0.5, 0.3, 0.2][: len(names)]}]})
    if len(names) > 1:
        with pytest.raises(ValueError, match="`labels` must leave a harmless one where labels exclude each other"):
            judge_from_url(server.base_url, "classify", "you/classifier", labels=labels)


@pytest.mark.parametrize("api", ["moderations", "classify", "chat"])
@pytest.mark.parametrize(
    ("behavior", "reason"), [(respond('{"detail": "none"}'), "an answer without one|gave no text"), (fail(400), "status 400")]
)
def test_an_endpoint_of_another_kind_is_an_error_at_once(api, behavior, reason, server):
    """Before, it was a judge that refused everything."""
    server.default = behavior
    model, labels = (None, None) if api == "moderations" else ("you/model", {"safe": 0.0, "unsafe": 1.0})
    profile = SAFE_UNSAFE if api == "chat" else None
    with pytest.raises(ValueError, match=f"must .*answer.* with verdicts.*({reason})"):
        judge_from_url(server.base_url, api, model, profile, labels=None if api == "chat" else labels)
