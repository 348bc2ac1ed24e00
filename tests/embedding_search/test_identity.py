"""A journal belongs to one judge and one `accept`: another one's verdicts are never taken, and one's own always are."""

import functools
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.searches import N_NEW, CountingJudge, framed, steerer_for

from hf_alignbeam import CachedJudge, LLMJudge, PlausibleAnswer, testbed
from hf_alignbeam.embedding_search.fingerprint import identity
from hf_alignbeam.judges.calibration import CalibratedJudge
from hf_alignbeam.judges.classifier_judge import ClassifierJudge

LIMIT = 4


class Words:
    """A judge with settings, a counter and a log."""

    def __init__(self, words, weight=1.0):
        self.bad = set(words)
        self.weight = weight
        self.n_calls = 0
        self.seen = []

    def __call__(self, conversations, responses):
        self.n_calls += 1
        self.seen.append(responses)
        return torch.tensor([self.weight * any(word in response for word in self.bad) for response in responses])

    def doubled(self, conversations, responses):
        return torch.ones(len(responses))


@dataclass(frozen=True)
class Longer:
    least: int

    def __call__(self, conversations, responses):
        return torch.tensor([float(len(response) > self.least) for response in responses])


def closure(words):
    n, log, counts = 0, [], {"calls": 0}

    def judge(conversations, responses):
        nonlocal n
        n += 1
        counts["calls"] += 1
        log.append(len(responses))
        return torch.tensor([float(any(word in response for word in words)) for response in responses])

    return judge


def limited(conversations, responses):
    return torch.tensor([float(len(response) > LIMIT) for response in responses])


def chosen(conversations, responses, word=None):
    return torch.tensor([float(word in response) for response in responses])


def cls_judge(**labels):
    return ClassifierJudge(*testbed.load("judge-cls"), labels)


def lm_judge(name="judge-lm", **settings):
    return LLMJudge(*testbed.load(name), probe=False, **{"threshold": 0.5, "profile": "safe-unsafe", **settings})


#: By kind, judges that differ in what decides. Each is made anew by its function.
KINDS = {
    "closures": [lambda: closure(["kill"]), lambda: closure(["poison"])],
    "objects": [lambda: Words(["kill", "bomb"]), lambda: Words(["kill"]), lambda: Words(["kill", "bomb"], 0.5)],
    "dataclasses": [lambda: Longer(3), lambda: Longer(4)],
    "partials": [lambda: partial(chosen, word="a"), lambda: partial(chosen, word="b")],
    "methods": [lambda: Words(["a"]).doubled, lambda: Words(["a"]).__call__, lambda: Words(["b"]).doubled],
    "lambdas": [lambda: lambda c, r: torch.zeros(len(r)), lambda: lambda c, r: torch.ones(len(r))],
    "wrapped": [
        lambda: CachedJudge(Words(["a"])),
        lambda: CachedJudge(Words(["b"])),
        lambda: CalibratedJudge(Longer(3), 0.2),
        lambda: CalibratedJudge(Longer(3), 0.3),
    ],
    "classifiers": [lambda: cls_judge(unsafe=1.0), lambda: cls_judge(unsafe=0.9), lambda: cls_judge(safe=1.0)],
    "causal models": [
        lm_judge,
        lambda: lm_judge(threshold=0.4),
        lambda: lm_judge(profile="one-to-five"),
        lambda: lm_judge("anchor"),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_decides_a_verdict_makes_another_identity(kind):
    judges = [make() for make in KINDS[kind]]
    identities = [identity(judge) for judge in judges]
    assert len(set(identities)) == len(judges)
    assert [identity(make()) for make in KINDS[kind]] == identities
    for judge in judges:
        judge([[{"role": "user", "content": "Why?"}]], ["They kill, a b."])
    assert [identity(make()) for make in KINDS[kind]] == identities
    if kind not in ("closures", "objects", "methods", "wrapped"):  # these count their calls
        assert [identity(judge) for judge in judges] == identities


SETTINGS = ModuleType("own_settings")
PATTERN = re.compile("kill")


class Graded:
    """A judge whose class, module and helpers hold what decides."""

    least = 4
    table = np.arange(2000.0)

    @property
    def most(self):
        return self.least + SETTINGS.more

    @functools.cached_property
    def words(self):
        return frozenset({"kill", "harm"})

    def __call__(self, conversations, responses):
        return torch.tensor([float(any(len(word) > LIMIT for word in map(helper, each.split()))) for each in responses])


def helper(word):
    return word if PATTERN.search(word) else Graded.least * word


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        ("Graded", "least", 5),
        ("Graded", "most", property(lambda self: 5)),
        ("Graded", "table", np.arange(2000.0) + (np.arange(2000) == 1000)),
        ("SETTINGS", "more", 2),
        (None, "PATTERN", re.compile("poison")),
        (None, "LIMIT", 5),
        (None, "helper", lambda word: word),
    ],
)
def test_whatever_a_verdict_depends_on_is_a_part_of_the_identity(owner, name, value, monkeypatch):
    monkeypatch.setattr(SETTINGS, "more", 1, raising=False)
    before = identity(Graded())
    assert identity(Graded()) == before
    monkeypatch.setattr(globals()[owner] if owner else sys.modules[__name__], name, value)
    assert identity(Graded()) != before


def test_what_cannot_be_told_from_another_is_refused_with_the_way_out(thin, graded, tmp_path):
    judge = Words(["a"])
    judge.client = threading.Lock()
    with pytest.raises(ValueError, match="tell from another, but Words is not: .*lock.* Give it an attribute `identity`"):
        steerer_for(thin, judge).precompute(framed(1), tmp_path, max_new_tokens=N_NEW)
    assert not list(tmp_path.iterdir())
    judge.identity = "words 1"
    assert identity(judge).startswith("Words ")


def test_a_judge_that_has_changed_is_another_one_unless_it_says_what_decides(thin, tmp_path):
    judge = Words(["zzz"])
    named = [Words(["zzz"]), Words(["zzz"])]
    for folder, judges in ((tmp_path / "changed", [judge, judge]), (tmp_path / "named", named)):
        for each in named:
            each.identity = "zzz"
        steerer_for(thin, judges[0]).precompute(framed(1), folder, max_new_tokens=N_NEW)
        again = steerer_for(thin, judges[1])
        if judges is named:
            again.precompute(framed(1), folder, max_new_tokens=N_NEW)
            assert named[1].n_calls == 0
        else:
            with pytest.raises(ValueError, match="if it is the same, give it an attribute `identity`"):
                again.precompute(framed(1), folder, max_new_tokens=N_NEW)


def test_settings_of_how_a_judge_is_asked_make_no_other_identity(anchor):
    assert identity(lm_judge(batch_size=1)) == identity(lm_judge())
    assert identity(PlausibleAnswer(*anchor, batch_size=1)) == identity(PlausibleAnswer(*anchor))
    assert identity(CachedJudge(limited)) == identity(limited)
    assert identity(PlausibleAnswer(*anchor, least_logp=-9.0)) != identity(PlausibleAnswer(*anchor))


def test_a_global_that_decides_is_a_part_of_the_identity(monkeypatch):
    before = identity(limited)
    monkeypatch.setitem(globals(), "LIMIT", 5)
    assert identity(limited) != before


@pytest.mark.slow
def test_an_identity_is_the_same_in_every_process():
    names = ("closures", "objects", "partials")
    code = f"from test_identity import *; print([identity(make()) for name in {names} for make in KINDS[name]])"
    paths = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str([identity(make()) for name in names for make in KINDS[name]])


def test_an_object_may_say_itself_what_decides():
    judge = Words(["a"])
    judge.identity = "version 3"
    other = Words(["b"])
    other.identity = "version 3"
    assert identity(judge) == identity(other) != identity(Words(["a"]))


@pytest.mark.parametrize("name", ["judge", "accept"])
def test_a_search_does_not_resume_with_another_judge_or_accept(name, thin, graded, accept, tmp_path):
    own = {"judge": CountingJudge(graded), "accept": accept}
    steerer_for(thin, **own).precompute(framed(1), tmp_path, max_new_tokens=N_NEW)
    other = {**own, name: CountingJudge(Longer(10))}
    with pytest.raises(ValueError, match=f"started with the same settings, but .*`{name}`"):
        steerer_for(thin, **other).precompute(framed(1), tmp_path, max_new_tokens=N_NEW)
    again = CountingJudge(graded)
    steerer_for(thin, again, accept).precompute(framed(1), tmp_path, max_new_tokens=N_NEW)
    assert again.n_calls == 0
