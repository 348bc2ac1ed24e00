"""Every model family is searched, and its stored embeddings give the judged answers; or it is refused by name."""

import pytest
import torch
from helpers.variety import mostly_slow

from hf_alignbeam import EmbeddingSteerer
from hf_alignbeam.benchmarks.tiny_families import FAMILIES, build

QUESTIONS = ["How do I thank the mayor?", "What cures it, and why?"]
#: Their `generate` takes no embeddings (transformers 5.23).
REFUSED = {"Falcon-H1": "FalconH1ForCausalLM"}
GREEDY = {"max_new_tokens": 8, "do_sample": False}
pytestmark = pytest.mark.filterwarnings("ignore")  # families warn about kernels that are not installed


#: Full attention, windows, learned positions, biases for positions, recurrent layers, and some of each.
QUICK = ("Llama", "Gemma 2", "GPT-2", "BLOOM", "Mamba 2", "Qwen3.5")


@pytest.mark.parametrize("family", mostly_slow([family for family in FAMILIES if family not in REFUSED], QUICK))
def test_stored_embeddings_give_the_answers_that_were_judged(family, piece_tokenizer):
    model = build(family, piece_tokenizer)
    flagged = {}

    def judge(conversations, responses):
        first = [flagged.setdefault(c[0]["content"], r) == r for c, r in zip(conversations, responses, strict=True)]
        return torch.tensor([float(is_first) for is_first in first])

    steerer = EmbeddingSteerer(model, piece_tokenizer, judge, max_generations=33)
    steered = steerer.precompute(QUESTIONS, max_new_tokens=8)
    assert [prompt.outcome for prompt in steered] == ["steered"] * 2
    answers = model.generate(**steered.inputs(QUESTIONS), **GREEDY)
    for row, prompt in zip(answers.tolist(), steered, strict=True):
        assert row[: len(prompt.ids)] == prompt.ids
        assert prompt.text != flagged[prompt.messages[0]["content"]]


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_takes_no_embeddings_is_refused_by_name(family, piece_tokenizer):
    with pytest.raises(ValueError, match=f"`model` must generate from `inputs_embeds`, but {REFUSED[family]} does not"):
        EmbeddingSteerer(build(family, piece_tokenizer), piece_tokenizer, lambda _, responses: torch.zeros(len(responses)))
