"""Recipes on the testbed, and their results without the command."""

from types import SimpleNamespace

from hf_alignbeam.evaluation import runner
from hf_alignbeam.evaluation.answer_store import Store
from hf_alignbeam.evaluation.prompt_sets import load_prompts
from hf_alignbeam.evaluation.recipe import parse_recipe
from hf_alignbeam.evaluation.results import gather

SYSTEMS = ["plain", "anchor-logits", {"name": "AlignBeam", "system": "alignbeam"}, "output-filter"]
GIVEN = {
    "model": "testbed:specialist",
    "anchor": "testbed:anchor",
    "judge": "testbed:oracle",
    "batch_size": 2,
    "max_new_tokens": 160,
    "prompts": [{"source": f"testbed:{kind}", "split": "validation", "limit": 4} for kind in ("harmful", "domain")],
    "systems": SYSTEMS,
}
#: One batch of each kind, where a test runs the recipe itself.
SHORT = {**GIVEN, "prompts": [{**prompts, "limit": 2} for prompts in GIVEN["prompts"]]}


def process(index=0, count=1):
    """The state of one of several processes, without the others."""
    return SimpleNamespace(process_index=index, num_processes=count, is_main_process=index == 0, wait_for_everyone=lambda: None)


def evaluated(folder, given=GIVEN, state=None, after=lambda job: None):
    """The results of a recipe; None if other processes have to answer some batches first."""
    recipe, state = parse_recipe(given), state or process()
    jobs = runner.plan_jobs(recipe, [each for spec in recipe.prompts for each in load_prompts(spec)])
    kept, verdicts = Store(folder, "answers", state), Store(folder, "verdicts", state)
    try:
        runner.answer_all(jobs, recipe, kept, state, after)
        kept.gather()
        complete = all(job.key in kept for job in jobs)
        return gather(recipe, jobs, kept, verdicts, state) if complete else None
    finally:
        kept.close()
        verdicts.close()
