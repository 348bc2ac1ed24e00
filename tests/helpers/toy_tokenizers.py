"""Toy tokenizers of kinds that the testbed has none of: WordPiece, and pieces that end in `</w>`."""

from string import ascii_lowercase

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ASCII = [chr(i) for i in range(33, 127)]
#: Words with every letter at their beginning and within, so that no word of letters is unknown.
ROTATED = [f"{ascii_lowercase[n:]}{ascii_lowercase[:n]} {ascii_lowercase[n]}" for n in range(26)]
SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}


def wordpiece(texts, vocab_size=600, **options):
    """A WordPiece tokenizer in lower case, as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), show_progress=False, initial_alphabet=ASCII
    )
    tokenizer.train_from_iterator([*texts, *ROTATED, " ".join(ASCII)], trainer)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **options)


def end_of_word(texts, vocab_size=600, **options):
    """A BPE tokenizer whose words end in `</w>`, as the first GPT's."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        show_progress=False,
        initial_alphabet=ASCII,
        end_of_word_suffix="</w>",
    )
    tokenizer.train_from_iterator([*texts, *ROTATED, " ".join(ASCII)], trainer)
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **options)
