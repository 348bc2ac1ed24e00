"""Qwen3Guard-Gen: its own chat template asks about the last message, and it answers with one of three grades.

Knows the generative models. The streaming ones classify tokens by code of their own and are refused by `known`. The template was
read in public copies of it; nothing was run on the weights.
"""

from hf_alignbeam.judges.profile import GuardProfile

#: The answer is "Safety: Unsafe", then a line of categories, and for responses a line "Refusal: No".
QWEN3GUARD_GEN = GuardProfile(
    name="qwen3guard-gen",
    verdicts={"Safe": 0.0, "Controversial": 0.5, "Unsafe": 1.0},
    model_ids=("Qwen/Qwen3Guard-Gen-*",),
    template_marks=("<BEGIN SAFETY POLICY>", "Safety: Controversial"),
    answer_start="Safety:",
    license="Apache-2.0",
    size="0.6B, 4B, 8B",
    source="QwenLM/Qwen3Guard README.md, and its chat template in public copies",
)
