"""What a user sees of an answer, who decodes it without special tokens, is what was judged, whatever the tokenizer."""

import copy
import hashlib
from functools import partial
from itertools import product

import pytest
import torch
from helpers.toy_tokenizers import end_of_word, wordpiece
from helpers.variety import mostly_slow
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

from hf_alignbeam import AlignBeam
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.testbed import tokenizers as toy
from hf_alignbeam.tokenization.seen_text import seen_bytes
from hf_alignbeam.tokenization.vocabulary import token_bytes

QUESTIONS = ("How?", "Burn the guest house.", "a")


def with_added(tokenizer):
    """A tokenizer with added tokens of both kinds, which a random model writes often enough."""
    tokenizer.add_tokens([AddedToken(f" word{n} ", special=False, normalized=bool(n % 2)) for n in range(40)])
    tokenizer.add_tokens([AddedToken(f"<|x{n}|>", special=True) for n in range(40)], special_tokens=True)
    return tokenizer


def cleaning(tokenizer):
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    return tokenizer


TOY = {
    "WordPiece": wordpiece,
    "end of word": end_of_word,
    "bytes": toy.byte_level,
    "bytes, added tokens": lambda texts: with_added(toy.byte_level(texts)),
    "bytes, cleaned up": lambda texts: cleaning(toy.byte_level(texts)),
    "pieces, added tokens": lambda texts: with_added(toy.sentencepiece_style(texts)),
    "WordPiece, added tokens": lambda texts: with_added(wordpiece(texts)),
}
REAL = ("gpt2", "llama2", "qwen3", "gemma2", "t5")


@pytest.fixture(scope="module")
def target_of(texts, real_tokenizer):
    def load(name):
        tokenizer = TOY[name](texts) if name in TOY else copy.deepcopy(real_tokenizer(name))
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        sizes = {"hidden_size": 8, "intermediate_size": 8, "head_dim": 2} if name in REAL else {}
        torch.manual_seed(3)
        config = LlamaConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "initializer_range": 0.4,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                **sizes,
            }
        )
        return LlamaForCausalLM(config).eval(), tokenizer

    return load


def flags_some(share):
    """A judge that flags a share of all texts."""
    return lambda conversations, responses: [
        float(hashlib.sha256(response.encode(errors="replace")).digest()[0] < 256 * share) for response in responses
    ]


def returned(target, share, explained, prompts=QUESTIONS, **options):
    """The new tokens of each answer, and its record."""
    model, tokenizer = target
    strategy = AlignBeam(
        model, tokenizer, tokenizer, flags_some(share), judge_after=3, judge_every=4, num_candidates=2, min_start=0.0
    ).for_call([[{"role": "user", "content": prompt}] for prompt in prompts], explain=explained.append)
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    torch.manual_seed(0)
    output = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        custom_generate=strategy,
        max_new_tokens=40,
        do_sample=True,
        top_k=0,
        **options,
    )
    return output[:, inputs.input_ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("name", "share"),
    mostly_slow(
        product((*TOY, *REAL), (0.0, 0.8)),
        [*((name, 0.8) for name in (*TOY, "gpt2", "t5")), ("WordPiece, added tokens", 0.0), ("bytes, added tokens", 0.0)],
    ),
)
def test_what_is_seen_is_what_was_judged(name, share, target_of):
    target, answers = target_of(name), []
    see = partial(target[1].decode, skip_special_tokens=True)
    rows = returned(target, share, answers)
    n_refused = 0
    for answer, row in zip(answers, rows, strict=True):
        assert row[: len(answer.ids)] == answer.ids
        committed = answer.ids[: answer.rollbacks[-1].n_kept] if answer.chosen < 0 else answer.ids
        assert (answer.text or "") == see(committed).strip()
        if answer.chosen >= 0:
            assert see(row).strip() == answer.text
        else:
            n_refused += letters(see(row)) == letters(see(committed) + REFUSAL)
            assert letters(see(row)) in (letters(see(committed) + REFUSAL), letters(see(committed)))  # if there is room
    assert n_refused > 0 or share == 0.0


def letters(text):
    return "".join(text.split()).lower()


def test_the_word_that_ends_a_callers_answers_does_not_follow_a_refusal(target_of, texts):
    model, tokenizer = target_of("bytes")
    word = tokenizer(" mayor", add_special_tokens=False).input_ids[-1]
    for eos in ([word], [word, tokenizer.eos_token_id]):
        answers = []
        for pad in (word, tokenizer.pad_token_id):
            rows = returned((model, tokenizer), 0.9, answers, prompts=QUESTIONS * 2, eos_token_id=eos, pad_token_id=pad)
            chosen = [answer.chosen for answer in answers[-len(rows) :]]
            assert chosen.count(-1) > 2
            for row, number in zip(rows, chosen, strict=True):
                if number == -1:
                    assert tokenizer.decode(row, skip_special_tokens=True).endswith(REFUSAL)


def test_a_word_hidden_by_a_special_token_is_judged_as_it_is_read(target_of):
    _, tokenizer = target_of("bytes, added tokens")
    ids = tokenizer("bo<|x1|>mb", add_special_tokens=False).input_ids
    assert tokenizer.convert_tokens_to_ids("<|x1|>") in ids
    assert seen_bytes(tokenizer, token_bytes(tokenizer), ids) == b"bomb"
