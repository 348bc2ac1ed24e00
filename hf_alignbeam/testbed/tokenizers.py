"""Trains the testbed's tokenizers: byte-level BPE for anchors, SentencePiece-style BPE for specialists.

Knows chat templates and how a tokenizer is trained on texts. Knows no language.
"""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

#: ChatML, as in the Qwen family, with a BOS at the start.
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: The template of a guard model: the whole exchange, then the start of the verdict.
GUARD = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>verdict\n")
#: Instruction brackets, as in the Mistral family; a system message comes before the first question.
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ '[SYS] ' + message.content + ' [/SYS]' }}"
    "{% elif message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(texts: list[str], n_merges: int = 500, chat_template: str = CHATML) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer with few merges, so that most nouns take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + n_merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|im_start|>", "<|im_end|>", "<|pad|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        padding_side="left",
        chat_template=chat_template,
    )


def byte_level_pairs(texts: list[str]) -> PreTrainedTokenizerBase:
    """Train a byte-level tokenizer for a classifier of pairs: `<|begin|> question <|im_end|> response <|im_end|>`."""
    tokenizer = byte_level(texts)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|im_end|>",
        pair="<|begin|> $A <|im_end|> $B <|im_end|>",
        special_tokens=[("<|begin|>", begin), ("<|im_end|>", end)],
    )
    tokenizer.chat_template = None
    return tokenizer


def sentencepiece_style(texts: list[str], n_pieces: int = 1000) -> PreTrainedTokenizerBase:
    """Train a BPE tokenizer with word-start marks and byte fallback, in which most words of the language are one token."""
    pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer, pre_tokenizers.Punctuation()])
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=n_pieces, show_progress=False))
    learned, merges = _pieces(learner)
    specials = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYS]", "[/SYS]"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(special, normalized=False) for special in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=INSTRUCT,
    )


def _pieces(learner: Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """The pieces of a trained BPE model in the order of their ids, and its merges."""
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].get), merges
