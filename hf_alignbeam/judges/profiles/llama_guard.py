"""Llama Guard 1 to 4: their own chat template shows the conversation and asks about its last message.

Knows which generation wants contents as strings and which as typed parts. The template of the 1B was read in full; that of
Llama Guard 4 and of the vision model is known from their cards only, and none was run on its weights.
"""

from hf_alignbeam.judges.profile import GuardProfile

_VERDICTS = {"safe": 0.0, "unsafe": 1.0}  # after "\n\n", and before a line of categories
_MARKS = ("<BEGIN UNSAFE CONTENT CATEGORIES>", "First line must read")

#: Contents as typed parts: the template renders a string as nothing.
LLAMA_GUARD_3_1B = GuardProfile(
    name="llama-guard-3-1b",
    verdicts=_VERDICTS,
    model_ids=("meta-llama/Llama-Guard-3-1B*", "meta-llama/Llama-Guard-3-11B-Vision*"),
    template_marks=(*_MARKS, "selectattr("),
    typed_parts=True,
    license="Llama 3.2 Community",
    size="1B, 11B with images",
    source="PurpleLlama Llama-Guard3/1B/MODEL_CARD.md, and its chat template in public copies",
)

#: Contents as strings.
LLAMA_GUARD = GuardProfile(
    name="llama-guard",
    verdicts=_VERDICTS,
    model_ids=("meta-llama/LlamaGuard-7b*", "meta-llama/*Llama-Guard-2-8B*", "meta-llama/*Llama-Guard-3-8B*"),
    template_marks=_MARKS,
    license="Llama 2, 3 and 3.1 Community",
    size="7B, 8B",
    source="PurpleLlama Llama-Guard/, Llama-Guard2/ and Llama-Guard3/8B/MODEL_CARD.md",
)

#: A `Llama4ForConditionalGeneration`, of which only the text is used.
LLAMA_GUARD_4 = GuardProfile(
    name="llama-guard-4",
    verdicts=_VERDICTS,
    model_ids=("meta-llama/Llama-Guard-4-12B*",),
    typed_parts=True,
    license="Llama 4 Community",
    size="12B",
    source="PurpleLlama Llama-Guard4/12B/MODEL_CARD.md",
)
