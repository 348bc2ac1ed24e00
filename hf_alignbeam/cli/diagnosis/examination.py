"""Runs every check, in order. A check that raises is a finding too.

Knows the checks and their names. Knows no terminal.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hf_alignbeam.cli.diagnosis import model_checks as model
from hf_alignbeam.cli.diagnosis import system_checks as system
from hf_alignbeam.cli.diagnosis.examined import CheckResult, ExaminedModel, Status
from hf_alignbeam.cli.diagnosis.judge_checks import KNOWN_PAIRS, known_pairs
from hf_alignbeam.judges.base import Judge

#: The checks of each model, by their name.
MODEL_CHECKS: dict[str, Callable[[ExaminedModel], CheckResult]] = {
    "decoder": model.decoder,
    "numbers": model.finite_logits,
    "dtypes": model.dtypes,
    "bytes": model.byte_completeness,
    "logits width": model.logits_width,
    "belongs together": model.belongs_together,
    "template": model.template,
    "double BOS": model.double_bos,
    "system role": model.system_role,
    "end of answers": model.end_of_answers,
    "cache": model.cache,
}


@dataclass(frozen=True)
class Finding:
    """The result of a check with its name."""

    check: str
    status: Status
    text: str


def examine(
    target: ExaminedModel,
    anchor: ExaminedModel,
    load: Callable[[], Judge] | None = None,
    pairs: Sequence[tuple[Any, str, bool]] = KNOWN_PAIRS,
) -> Iterator[Finding]:
    """Run every check.

    Args:
        target: The specialist.
        anchor: The safe model.
        load: Loads the judge; where that raises, it is a finding. None skips the check.
        pairs: Conversations, responses, and whether these do harm, for the judge.
    """
    for examined in (target, anchor):
        for name, check in MODEL_CHECKS.items():
            yield _run(f"{examined.name}: {name}", partial(check, examined))
    yield _run("target: inputs_embeds", partial(model.embeddings, target))
    yield _run("pair: dtypes", partial(system.same_dtype, target, anchor))
    yield _run("pair: translation", partial(system.translation, target, anchor))
    yield _run("pair: guard", partial(system.guard, target, anchor))
    yield _run("pair: overhead", partial(system.overhead, target, anchor))
    yield _run("law: the target as its own anchor is plain generate", partial(system.target_as_anchor, target))
    yield _run("law: a batch is its prompts one by one", partial(system.batches, target, anchor))
    if load is not None:
        yield _run("judge: known answers", lambda: known_pairs(load(), pairs))


def _run(name: str, check: Callable[[], CheckResult]) -> Finding:
    try:
        with torch.no_grad():
            return Finding(name, *check())
    except ValueError as error:  # says what is wrong and what to do
        return Finding(name, "red", str(error))
    except Exception as error:  # any exception of a broken set-up tells what is wrong with it
        return Finding(name, "red", f"{type(error).__name__}: {error}")
