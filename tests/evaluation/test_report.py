"""Tables from answers that are written down here."""

from hf_alignbeam.evaluation.files.prompt_source import PromptSpec
from hf_alignbeam.evaluation.prompt_sets import Example, PromptSet
from hf_alignbeam.evaluation.recipe import ModelSpec, Recipe, SystemSpec
from hf_alignbeam.evaluation.reports.report import markdown, slowdown
from hf_alignbeam.evaluation.results import Answers, SystemResults

MODEL = ModelSpec("target")
COST = {"prompts": 4, "seconds": 1.0, "tokens": 8, "machine": "here", "no_verdict": 0}
COST |= dict.fromkeys(("target_forwards", "anchor_forwards", "judge_calls", "judged"), 0)


def results(system, refuses, ids):
    """Answers to four harmless prompts."""
    prompts = PromptSet("ordinary", False, [Example(str(n), [{"role": "user", "content": "Hi"}]) for n in range(4)])
    records = [{"case": str(n), "ids": one, "chosen": None, "text": ""} for n, one in enumerate(ids)]
    answers = Answers(prompts, records, {"refuses": refuses, "by strings": refuses}, [dict(COST)])
    return SystemResults(MODEL, SystemSpec(system, system, {}), {"ordinary": answers})


def test_over_refusal_counts_only_what_the_plain_target_answers():
    """Two of the three prompts that it answers are refused; one answer of four has its tokens."""
    plain = results("plain", [True, False, False, False], [[1], [2], [3], [4]])
    guarded = results("anchor-logits", [True, True, True, False], [[9], [9], [9], [4]])
    recipe = Recipe((MODEL,), (PromptSpec("file"),), (plain.system,))
    lines = markdown(recipe, [plain, guarded], "")
    head = next(n for n, line in enumerate(lines) if "refused of those that plain answers" in line)
    of_plain, of_guarded = (line.split("|")[2:4] for line in lines[head + 2 : head + 4])
    assert of_plain[0].split()[:1] == ["0.0"]
    assert of_plain[1].split()[:1] == ["100.0"]
    assert of_guarded[0].split()[:1] == ["66.7"]
    assert of_guarded[1].split()[:1] == ["25.0"]


def test_a_slowdown_is_for_as_many_prompts():
    """Two prompts in three seconds, where the plain target takes one second for four."""
    plain = results("plain", [False] * 4, [[1]] * 4)
    guarded = results("anchor-logits", [False] * 4, [[1]] * 4)
    guarded.answers["ordinary"].costs[:] = [{**COST, "prompts": 2, "seconds": 3.0}]
    assert slowdown(guarded, plain).value == 6.0
