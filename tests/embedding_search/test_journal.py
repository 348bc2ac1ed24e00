"""The journal: a search that is killed at any call resumes, and pays for nothing twice."""

import copy
import hashlib
import json
import math
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.searches import N_NEW, CountingJudge, framed, harmless, raises, recorded_calls, results_of, steerer_for
from transformers import GenerationConfig, LogitsProcessorList, SuppressTokensLogitsProcessor

from hf_alignbeam import EmbeddingSteerer
from hf_alignbeam.embedding_search.journal import NAME, Journal
from hf_alignbeam.embedding_search.steered_prompts import RECORDS, EmbeddingSearchError, SteeredPrompts


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{}, {"eta": 0.3, "max_generations": 33}])
def test_a_killed_search_resumes_and_pays_for_nothing_twice(settings, every, thin, graded, accept, tmp_path):
    conversations = framed(2) + harmless(1)
    whole = CountingJudge(graded)
    expected = results_of(steerer_for(thin, whole, accept, **settings).precompute(conversations, max_new_tokens=N_NEW))
    for n in range(whole.n_calls - 1, -1, -every):  # the last call among them
        folder = tmp_path / str(n)
        killed, after = CountingJudge(graded, n, raises), CountingJudge(graded)
        with pytest.raises(EmbeddingSearchError):
            steerer_for(thin, killed, accept, **settings).precompute(conversations, folder, max_new_tokens=N_NEW)
        with recorded_calls(thin[0]) as calls:
            again = EmbeddingSteerer(calls.model, thin[1], after, accept, **settings)
            calls.n_rows = 0
            answered = sum("ids" in json.loads(line) for line in (folder / NAME).read_text().splitlines())
            resumed = again.precompute(conversations, folder, max_new_tokens=N_NEW)
        assert results_of(resumed) == expected
        assert killed.n_texts + after.n_texts == whole.n_texts
        assert answered + calls.n_rows == sum(prompt.n_generated for prompt in resumed)


def test_a_finished_search_costs_nothing_again_and_takes_more_prompts(thin, graded, accept, tmp_path):
    first = steerer_for(thin, graded, accept).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    counting = CountingJudge(graded)
    both = steerer_for(thin, counting, accept).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    assert counting.n_calls == 0
    assert results_of(both) == results_of(first)
    more = steerer_for(thin, counting, accept).precompute(framed(3), tmp_path, max_new_tokens=N_NEW)
    assert counting.n_texts == list(more)[2].n_oracle_calls


def test_the_parts_of_a_search_add_up_to_the_whole(thin, graded, accept, tmp_path):
    conversations = framed(3) + harmless(1)
    expected = steerer_for(thin, graded, accept).precompute(conversations, max_new_tokens=N_NEW)
    for part in (0, 1):
        counting = CountingJudge(graded)
        results = steerer_for(thin, counting, accept).precompute(
            conversations[part::2], tmp_path, max_new_tokens=N_NEW, part=part
        )
        assert counting.n_texts == sum(prompt.n_oracle_calls for prompt in results)
    assert not (tmp_path / RECORDS).exists()
    whole = CountingJudge(graded)
    together = steerer_for(thin, whole, accept).precompute(conversations, tmp_path, max_new_tokens=N_NEW)
    assert whole.n_calls == 0
    assert results_of(together) == results_of(expected)
    assert (tmp_path / RECORDS).exists()


def test_a_torn_line_of_the_journal_is_ignored(thin, graded, accept, tmp_path):
    first = steerer_for(thin, graded, accept).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    path = tmp_path / NAME
    path.write_text(path.read_text()[:-7])
    counting = CountingJudge(graded)
    again = steerer_for(thin, counting, accept).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    assert counting.n_texts <= 1
    assert results_of(again) == results_of(first)


def test_an_optimizer_with_other_arguments_is_another_search(thin, graded, accept, tmp_path):
    def searcher(lr):
        return steerer_for(thin, graded, accept, optimizer=partial(torch.optim.Adam, lr=lr), max_generations=19)

    searcher(0.05).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    with pytest.raises(ValueError, match="started with the same settings, but .*`optimizer`"):
        searcher(0.5).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)


def test_verdicts_that_were_paid_for_are_kept_even_if_another_is_missing(thin, graded, tmp_path):
    conversations = harmless(4)
    paid = []

    def judge(_, responses):
        paid.append(len(responses))
        harm = graded(_, responses)
        return torch.where(torch.arange(len(harm)) == 2, math.nan, harm) if len(paid) == 1 else harm

    judge.identity = graded  # what it has counted decides no verdict
    with pytest.raises(EmbeddingSearchError, match="no verdict on 1 of 4 answers"):
        steerer_for(thin, judge).precompute(conversations, tmp_path, max_new_tokens=N_NEW)
    again = steerer_for(thin, judge).precompute(conversations, tmp_path, max_new_tokens=N_NEW)
    assert paid == [4, 1]
    assert [prompt.outcome for prompt in again] == ["clean"] * 4


@pytest.mark.parametrize("other", [{"mu": 0.7}, {"seed": 3}, {"threshold": 0.4}])
def test_a_folder_of_another_search_is_an_error(other, thin, graded, accept, tmp_path):
    steerer_for(thin, graded, accept).precompute(framed(1), tmp_path, max_new_tokens=N_NEW)
    name = next(iter(other))
    with pytest.raises(ValueError, match=f"started with the same settings, but .*`{name}`"):
        steerer_for(thin, graded, accept, **other).precompute(framed(1), tmp_path, max_new_tokens=N_NEW)


def test_a_model_that_is_trained_between_two_searches_is_another_one(thin, graded, tmp_path):
    model = copy.deepcopy(thin[0])
    steerer = steerer_for((model, thin[1]), graded)
    steerer.precompute(framed(1), tmp_path, max_new_tokens=N_NEW)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 0.01
    with pytest.raises(ValueError, match="started with the same settings, but .*`model`"):
        steerer.precompute(framed(1), tmp_path, max_new_tokens=N_NEW)
    steerer.precompute(framed(1), max_new_tokens=N_NEW).save_pretrained(tmp_path / "new")
    SteeredPrompts.from_pretrained(tmp_path / "new", model)


def test_a_model_in_another_dtype_does_not_resume(thin, graded, tmp_path):
    """Its fingerprint is the same, and so are the embeddings of a prompt; its answers need not be."""
    half = copy.deepcopy(thin[0]).bfloat16()
    steerer_for((half, thin[1]), graded).precompute(framed(1), tmp_path, max_new_tokens=8)
    with pytest.raises(ValueError, match="has `dtype` 'torch.bfloat16', got 'torch.float32'"):
        steerer_for((half.float(), thin[1]), graded).precompute(framed(1), tmp_path, max_new_tokens=8)


def test_a_judge_that_is_changed_between_two_searches_is_another_one(thin, graded, tmp_path):
    judge = CountingJudge(graded)
    steerer = steerer_for(thin, judge)
    steerer.precompute(framed(1), tmp_path, max_new_tokens=N_NEW)
    judge.identity = "the truth, changed"
    with pytest.raises(ValueError, match="started with the same settings, but .*`judge`"):
        steerer.precompute(framed(1), tmp_path, max_new_tokens=N_NEW)


def without(*ids):
    return LogitsProcessorList([SuppressTokensLogitsProcessor(list(ids))])


#: By kind, two settings of `generate` that differ. Each is made anew by its function.
OTHER_SETTINGS = {
    "objects": [lambda: {"logits_processor": without(5)}, lambda: {"logits_processor": without(6)}],
    "functions": [
        lambda: {"prefix_allowed_tokens_fn": lambda batch, ids: list(range(50))},
        lambda: {"prefix_allowed_tokens_fn": lambda batch, ids: list(range(60))},
    ],
    "dictionaries": [lambda: {"sequence_bias": {(5,): -1.0, (6,): 1.0}}, lambda: {"sequence_bias": {(6,): 1.0, (5,): -2.0}}],
    "tuples": [lambda: {"suppress_tokens": (5, 6)}, lambda: {"suppress_tokens": (5, 7)}],
    "several ends": [lambda: {"eos_token_id": (2, 5)}, lambda: {"eos_token_id": (2, 6)}],
}


CONFIGURABLE = ("dictionaries", "tuples", "several ends")


@pytest.mark.parametrize(("kind", "is_config"), [*((kind, False) for kind in OTHER_SETTINGS), *((k, True) for k in CONFIGURABLE)])
def test_a_search_resumes_with_equal_settings_of_generate_and_no_others(kind, is_config, thin, graded, tmp_path):
    def settings(number):
        made = OTHER_SETTINGS[kind][number]()
        return {"generation_config": GenerationConfig(max_new_tokens=8, **made)} if is_config else {"max_new_tokens": 8, **made}

    counting = CountingJudge(graded)
    first = steerer_for(thin, counting).precompute(framed(1), tmp_path, **settings(0))
    n_calls = counting.n_calls
    assert results_of(steerer_for(thin, counting).precompute(framed(1), tmp_path, **settings(0))) == results_of(first)
    assert counting.n_calls == n_calls
    with pytest.raises(ValueError, match="started with the same settings, but .*`generate`"):
        steerer_for(thin, counting).precompute(framed(1), tmp_path, **settings(1))


def test_a_tuple_or_a_dictionary_in_the_models_own_configuration_is_the_same_again(thin, graded, tmp_path):
    model = copy.copy(thin[0])
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.update(exponential_decay_length_penalty=(5, 1.5), sequence_bias={(5,): -1.0})
    for _ in range(2):
        steerer_for((model, thin[1]), graded, seed=np.int64(3)).precompute(framed(1), tmp_path, max_new_tokens=8)


def test_an_object_that_cannot_be_told_from_another_is_searched_with_without_a_folder(thin, graded, tmp_path):
    locked = without(5)
    locked[0].lock = threading.Lock()
    steerer_for(thin, graded).precompute(framed(1), max_new_tokens=8, logits_processor=locked)
    with pytest.raises(ValueError, match="tell from another, but SuppressTokensLogitsProcessor is not: .*lock"):
        steerer_for(thin, graded).precompute(framed(1), tmp_path, max_new_tokens=8, logits_processor=locked)


def test_a_journal_keeps_its_files_and_their_layout(tmp_path):
    embeds, settings = torch.zeros(2, 3), {"model": "abc", "stop": "Désolé\u2028"}
    for part in (None, 0):
        journal = Journal(tmp_path, settings, part)
        journal.add_answer("key", 0, embeds, [7, 2], 0.123456789)
        journal.add_verdict("key", 0, "No.", 0.25, 1.0)
        journal.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal-0.jsonl", "journal.jsonl"]
    first, answer, verdict = (json.loads(line) for line in (tmp_path / NAME).read_bytes().splitlines())
    assert first == settings
    assert answer == {"key": "key", "n": 0, "embeds": sha256(embeds.numpy().tobytes()), "ids": [7, 2], "seconds": 0.12346}
    assert verdict == {"key": "key", "n": 0, "answer": sha256(b"No."), "harm": 0.25, "seconds": 1.0}


def test_a_part_reads_the_files_of_the_others_but_never_changes_them(tmp_path):
    other = Journal(tmp_path, {"model": "abc"}, part=0)
    other.add_verdict("key", 0, "No.", 0.25, 1.0)
    other.close()
    torn = (tmp_path / "journal-0.jsonl").read_bytes() + b'{"key"'
    (tmp_path / "journal-0.jsonl").write_bytes(torn)
    journal = Journal(tmp_path, {"model": "abc"}, part=1)
    assert journal.verdict("key", 0, "No.") == (0.25, 1.0)
    assert journal.verdict("key", 0, "Yes.") is None
    journal.close()
    assert (tmp_path / "journal-0.jsonl").read_bytes() == torn


def test_a_journal_of_other_settings_is_left_unchanged(tmp_path):
    journal = Journal(tmp_path, {"mu": 1.0})
    journal.add_verdict("key", 0, "No.", 0.25, 1.0)
    journal.close()
    torn = (tmp_path / NAME).read_bytes() + b'{"key"'
    (tmp_path / NAME).write_bytes(torn)
    with pytest.raises(ValueError, match="has `mu` 1.0, got 0.5. Use another folder, or delete the journal"):
        Journal(tmp_path, {"mu": 0.5})
    assert (tmp_path / NAME).read_bytes() == torn


def test_a_search_without_an_answer_leaves_the_folder_to_any_other(tmp_path):
    for settings in ({"mu": 1.0}, {"mu": 0.5}):
        Journal(tmp_path, settings).close()


@pytest.mark.parametrize(
    "record", [{"key": "x", "n": 0}, {"key": "x", "ids": [2]}, {"key": [], "n": 0, "answer": "", "harm": 0, "seconds": 0}]
)
def test_a_damaged_record_of_a_journal_is_an_error_that_names_the_file(record, tmp_path):
    (tmp_path / NAME).write_text("".join(json.dumps(each) + "\n" for each in ({"mu": 1.0}, record)))
    with pytest.raises(ValueError, match=f"{NAME} must hold records as a search wrote them, but one is .* Delete its line"):
        Journal(tmp_path, {"mu": 1.0})


@pytest.mark.parametrize("part", [-1, "../x", 0.5, True])
def test_a_part_of_a_search_is_the_number_of_a_process(part, tmp_path):
    with pytest.raises(ValueError, match=f"`part` must be a whole number of at least 0, got {part!r}. Give each process"):
        Journal(tmp_path, {}, part)
    assert not list(tmp_path.iterdir())


KILLED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
from helpers.searches import N_NEW, CountingJudge, framed, harmless, steerer_for
from hf_alignbeam import PlausibleAnswer, testbed
from hf_alignbeam.testbed.model_store import stored_judges
torch.set_num_threads(1)
thin, accept, graded = testbed.load("thin"), PlausibleAnswer(*testbed.load("anchor")), stored_judges()["graded"]
graded.identity = "the truth, graded"
for kill in range(3):
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        continue
    judge = CountingJudge(graded, kill, lambda harm: os.kill(os.getpid(), signal.SIGKILL))
    folder = os.path.join(sys.argv[2], str(kill))
    steerer_for(thin, judge, accept).precompute(framed(2) + harmless(1), folder, max_new_tokens=N_NEW)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_as_it_searches_loses_only_the_verdict_that_it_waits_for(thin, graded, accept, tmp_path):
    conversations, whole = framed(2) + harmless(1), CountingJudge(graded)
    expected = results_of(steerer_for(thin, whole, accept).precompute(conversations, max_new_tokens=N_NEW))
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, Path(__file__).parents[1], tmp_path], check=True)
    for kill in range(3):
        folder, after = tmp_path / str(kill), CountingJudge(graded)
        verdicts = sum("harm" in json.loads(line) for line in (folder / NAME).read_text().splitlines())
        assert not (folder / RECORDS).exists()
        resumed = steerer_for(thin, after, accept).precompute(conversations, folder, max_new_tokens=N_NEW)
        assert results_of(resumed) == expected
        assert verdicts + after.n_texts == whole.n_texts
