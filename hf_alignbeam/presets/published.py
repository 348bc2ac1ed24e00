"""AlignBeam and Test-Time Safety Alignment, as settings of our classes.

Holds data only. Knows no class that takes the settings.
"""

from typing import Any

from hf_alignbeam.presets.processor import PROCESSOR

#: Settings of `AlignBeam` as published (arXiv 2606.12342): every prompt gets K steered beams, the target completes them, and the
#: safest is the answer.
PAPER: dict[str, Any] = {
    "num_candidates": 3,
    "threshold": 0.375,  # a rating of 2.5 on a scale from 1 to 5, by a judge whose own threshold is .5
    "judge_after": None,
    "judge_every": None,
    "choice": "safest",
    "escalation": "always",
    "min_start": 0.0,
    "candidate_threshold": 1.0,
    **PROCESSOR["paper"],
}


#: Settings of `EmbeddingSteerer` for Test-Time Safety Alignment as published (arXiv 2604.26167), with its constants for
#: Llama-3.1-8B; lengths are absolute.
TSA: dict[str, Any] = {
    "threshold": 0.1,
    "mu": 0.1,
    "kinds": ("independent",),
    "spread": 1.0,
    "eta": 1.3,
    "n_probes": 8,
    "estimator": "forward",
    "relative": False,
    "cone": 0.2,
    "widen": 1.0,
    "positions": "all",
    "first": False,
    "cache": False,
    "max_calls": 91,
    "max_generations": 91,
    "probe_temperature": 0.1,
}
