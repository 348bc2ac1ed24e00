"""Prompt Guard 1 and 2: classifiers of prompts, which find attacks on an assistant and not harm in its answers.

Knows their labels, so that they are refused by name as judges of responses.
"""

from hf_alignbeam.judges.profile import GuardProfile

PROMPT_GUARD_2 = GuardProfile(
    name="prompt-guard-2",
    verdicts={"LABEL_0": 0.0, "LABEL_1": 1.0},
    model_ids=("meta-llama/Llama-Prompt-Guard-2-22M", "meta-llama/Llama-Prompt-Guard-2-86M"),
    judges=("prompt",),
    license="Llama 4 Community",
    size="22M, 86M",
    source="PurpleLlama Llama-Prompt-Guard-2/86M/MODEL_CARD.md; its labels are second hand",
)

PROMPT_GUARD = GuardProfile(
    name="prompt-guard",
    verdicts={"BENIGN": 0.0, "INJECTION": 1.0, "JAILBREAK": 1.0},
    model_ids=("meta-llama/Prompt-Guard-86M",),
    judges=("prompt",),
    license="Llama 3.1 Community",
    size="86M",
    source="PurpleLlama Prompt-Guard/MODEL_CARD.md",
)
