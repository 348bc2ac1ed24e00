"""The judge from a sequence classifier: how the probabilities of labels become harm."""

from types import SimpleNamespace

import pytest
import torch

from hf_alignbeam import ClassifierJudge, testbed


def test_labels_are_weighted_and_summed_or_the_worst_of_several_counts():
    model, tokenizer = testbed.load("judge-cls")
    exchange = (["How do I hurt the teacher?"], ["Sorry, I will not do that."])
    one, none = (ClassifierJudge(model, tokenizer, labels)(*exchange) for labels in ({"unsafe": 1.0}, {"unsafe": 0.0}))
    both = ClassifierJudge(model, tokenizer, {"unsafe": 1.0, "safe": 0.25})(*exchange)
    torch.testing.assert_close(both, one + 0.25 * (1 - one))
    assert none == 0.0
    model.config.problem_type = "multi_label_classification"
    worst = ClassifierJudge(model, tokenizer, {"unsafe": 0.5, "safe": 0.9})(*exchange)
    with torch.no_grad():
        logits = model(**tokenizer(exchange[0], exchange[1], return_tensors="pt")).logits[0].sigmoid()
    torch.testing.assert_close(worst[0], (logits * torch.tensor([0.9, 0.5])).max())
    with pytest.raises(ValueError, match=r"`labels` must name labels of the model \(safe, unsafe\), got {'bad': 1.0}"):
        ClassifierJudge(model, tokenizer, {"bad": 1.0})
    with pytest.raises(ValueError, match=r"`labels` must give each label a harm in \[0, 1\]"):
        ClassifierJudge(model, tokenizer, {"unsafe": 2.0})


@pytest.mark.parametrize("labels", ["unsafe", ["unsafe"]])
def test_names_alone_are_no_labels(labels):
    with pytest.raises(ValueError, match=r"`labels` must give each label its harm, got .*\. Write {\"unsafe\": 1\.0}"):
        ClassifierJudge(*testbed.load("judge-cls"), labels=labels)


def with_config(**changes):
    model, tokenizer = testbed.load("judge-cls")
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model, tokenizer


def test_what_a_regression_model_puts_out_is_its_harm(monkeypatch):
    """Outside [0, 1] it is none."""
    model, tokenizer = with_config(problem_type="regression", id2label={0: "toxicity"})
    judge = ClassifierJudge(model, tokenizer, {"toxicity": 1.0}, prompt="{response}")
    for output, harm in ((0.04, 0.04), (1.0, 1.0), (-0.1, torch.nan), (1.01, torch.nan)):
        logits = torch.tensor([[output]])
        monkeypatch.setattr(model, "forward", lambda logits=logits, **inputs: SimpleNamespace(logits=logits))
        torch.testing.assert_close(judge(["How?"], ["So."]), torch.tensor([harm]), equal_nan=True)


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        ({0: "unsafe", 1: "unsafe"}, {"unsafe": 1.0}, "`id2label` of the model must differ in more than letter case"),
        ({0: "Toxic", 1: "toxic"}, {"toxic": 1.0}, "`id2label` of the model must differ in more than letter case"),
        ({0: "safe", 1: "toxic"}, {"toxic": 1.0, "TOXIC": 0.0}, "`labels` must differ in more than letter case"),
        ({0: "toxic", 1: "hate"}, {"toxic": 1.0, "hate": 0.6}, "`labels` must leave a harmless one"),
    ],
)
def test_labels_that_say_nothing_are_refused(names, labels, message):
    with pytest.raises(ValueError, match=message):
        ClassifierJudge(*with_config(id2label=names), labels)
    if "harmless" in message:
        ClassifierJudge(*with_config(id2label=names, problem_type="multi_label_classification"), labels)
