"""A universal prefix: fitted, saved, and loaded by PEFT."""

import copy

import peft
import pytest
import torch
from helpers.searches import GREEDY, N_NEW, framed, harmless, steerer_for
from helpers.transformers_names import CACHE
from packaging.version import Version
from peft import PeftModel

from hf_alignbeam.embedding_search.embeddings import left_padded
from hf_alignbeam.evaluation.generation import encode

#: peft 0.21 under transformers 5.23.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
#: peft looks for the cache under its name before transformers 5.24, and inserts the prefix again before each token.
PEFT_FOLLOWS = pytest.mark.xfail(
    CACHE == "cache" and Version(peft.__version__) <= Version("0.21.2"), reason="peft does not know the cache", strict=True
)


@PEFT_FOLLOWS
@PEFT_WARNS
def test_a_universal_prefix_is_an_adapter_that_peft_loads(thin, graded, accept, truth, tmp_path):
    model, tokenizer = thin
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fitted_to = framed(24) + harmless(24)
    prefix = steerer_for(thin, graded, accept).fit_prefix(fitted_to, 6, max_new_tokens=N_NEW, n_steps=60)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert prefix.embeds.shape == (6, model.config.hidden_size)
    assert prefix.loss[-1] < 0.2 * prefix.loss[0]
    prefix.save_pretrained(tmp_path, model)
    tuned = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    conversations = framed(10, start=24)
    inputs = encode(conversations, tokenizer)
    with pytest.warns(UserWarning, match="Position ids"):  # a warning of peft
        sequences = tuned.generate(**inputs, **GREEDY)
    texts = tokenizer.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert sum(truth.refusal(text) for text in texts) >= 8
    table = model.get_input_embeddings()
    rows = [torch.cat([prefix.embeds, table(row[mask.bool()])]) for row, mask in zip(*inputs.values(), strict=True)]
    assert torch.equal(sequences[:, inputs["input_ids"].shape[1] :], model.generate(**left_padded(rows), **GREEDY))


@pytest.mark.parametrize("seed", [-5, 2**70])
def test_a_seed_of_any_size_fits_a_prefix(seed, thin, graded, accept):
    prefix = steerer_for(thin, graded, accept, seed=seed).fit_prefix(framed(1), 1, max_new_tokens=N_NEW, n_steps=1)
    assert prefix.embeds.isfinite().all()


def test_a_prefix_needs_prompts_with_another_answer_and_valid_settings(thin, graded, accept):
    with pytest.raises(
        ValueError, match="`conversations` must hold flagged prompts to which the search finds an acceptable answer"
    ):
        steerer_for(thin, graded, accept).fit_prefix(harmless(2), 4, max_new_tokens=N_NEW)
    for name in ("n_tokens", "n_steps", "batch_size"):
        with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1, got 0"):
            steerer_for(thin, graded, accept).fit_prefix(framed(1), **{name: 0})
