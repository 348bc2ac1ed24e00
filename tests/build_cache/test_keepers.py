"""What the next guard and the next process take over, and what they do not."""

import copy
import gc
import weakref

import pytest
import torch
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from hf_alignbeam.build_cache import keepers
from hf_alignbeam.build_cache.contents import is_published, model_digest, tokenizer_digest
from hf_alignbeam.build_cache.disk import FOLDER_VARIABLE
from hf_alignbeam.inference import branching_cache
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.tokenization.backends import read_backend
from hf_alignbeam.tokenization.vocabulary import Vocabulary, token_bytes
from hf_alignbeam.translation import translator as translators
from hf_alignbeam.translation.translator import Table, VocabularyTranslator


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def trials(monkeypatch):
    """The models on which a trial was made."""
    models = []
    recomputed = branching_cache._recomputed

    def counted(model, *rest):
        models.append(model)
        return recomputed(model, *rest)

    monkeypatch.setattr(branching_cache, "_recomputed", counted)
    return models


def reloaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


def same_tables(first, second):
    assert vars(first).keys() == vars(second).keys()
    for name, value in vars(first).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, vars(second)[name]), name
        elif name in Table.__dataclass_fields__:
            assert value == vars(second)[name], name


CHANGES = {
    "an added token": lambda tokenizer: tokenizer.add_tokens(["wordless"]),
    "a special token": lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": ["a"]}),
    "a normalizer": lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", normalizers.Lowercase()),
    "a pre-tokenizer": lambda tokenizer: setattr(
        tokenizer.backend_tokenizer,
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("."), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tokenizer_is_read_again(change, byte_tokenizer, piece_tokenizer, folder):
    tokenizer = copy.deepcopy(byte_tokenizer)
    before = VocabularyTranslator(tokenizer, piece_tokenizer)
    before.table()
    first = tokenizer_digest(tokenizer)
    CHANGES[change](tokenizer)
    assert tokenizer_digest(tokenizer) != first
    assert read_backend(tokenizer) is not before.anchor.backend
    kept = VocabularyTranslator(tokenizer, piece_tokenizer)
    expected = translators.links(kept, b"", b"")
    assert [list(kept.table().extensions.items()), len(kept.anchor)] == [expected[1], len(tokenizer)]


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_read_stays_as_it_was(change, byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    vocabulary = Vocabulary(tokenizer)
    CHANGES[change](tokenizer)
    assert vocabulary.same_ids(Vocabulary(byte_tokenizer))
    assert vocabulary.encode(b"A wordless the") == Vocabulary(byte_tokenizer).encode(b"A wordless the")


def test_another_model_in_a_tokenizer_is_noticed(byte_tokenizer, piece_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    before = token_bytes(tokenizer)
    tokenizer.backend_tokenizer.model = copy.deepcopy(piece_tokenizer).backend_tokenizer.model
    assert token_bytes(tokenizer) != before


def test_equal_tokenizers_share_one_back_end(byte_tokenizer, tmp_path):
    other = reloaded(byte_tokenizer, tmp_path)
    other("cut this", truncation=True, max_length=2, padding="max_length")  # sets what encoding depends on, and no back end
    assert other is not byte_tokenizer
    assert read_backend(other) is read_backend(byte_tokenizer)


@pytest.mark.parametrize("pair", [("byte_tokenizer", "piece_tokenizer"), ("piece_tokenizer", "byte_tokenizer")])
@pytest.mark.parametrize("rule", ["bytes", "drop", "first", "exact"])
def test_a_table_from_disk_is_the_table(pair, rule, request, folder, monkeypatch):
    made = [copy.deepcopy(request.getfixturevalue(name)) for name in pair]
    monkeypatch.setattr(keepers, "_BACKENDS", weakref.WeakValueDictionary())
    first = VocabularyTranslator(*made, rule)
    tables = [first.table(), first.table(b"", b" ")]
    assert [path.name.split("-")[0] for path in sorted(folder.iterdir())] == ["links", "links", "tokens", "tokens"]
    monkeypatch.setattr(keepers, "_BACKENDS", weakref.WeakValueDictionary())
    monkeypatch.setattr("hf_alignbeam.tokenization.backends._read_tokens", lambda tokenizer: pytest.fail("read again"))
    second = VocabularyTranslator(*map(copy.deepcopy, made), rule)
    monkeypatch.setattr(Vocabulary, "encode_batch", lambda *args: pytest.fail("encoded again"))
    assert (second.anchor.tokens, second.target.tokens) == (first.anchor.tokens, first.target.tokens)
    for before, after in zip(tables, [second.table(), second.table(b"", b" ")], strict=True):
        same_tables(before, after)


def test_other_eos_ids_have_other_tables(byte_tokenizer, piece_tokenizer, folder):
    i = read_backend(byte_tokenizer).tokens.index(b"~")
    VocabularyTranslator(byte_tokenizer, piece_tokenizer).table()
    table = VocabularyTranslator(byte_tokenizer, piece_tokenizer, anchor_eos_ids=[i]).table()
    assert i in table.others.tolist()


def test_tables_of_pending_bytes_are_not_kept_on_disk(byte_tokenizer, piece_tokenizer, folder):
    VocabularyTranslator(byte_tokenizer, piece_tokenizer).table(b" ")
    assert not list(folder.glob("links*"))


def test_guards_share_a_translator_and_a_trial(anchor, specialist, trials):
    model = copy.deepcopy(anchor[0])
    guards = [AnchorLogitsProcessor(model, anchor[1], tokenizer) for tokenizer in (specialist[1], copy.deepcopy(specialist[1]))]
    assert guards[0].translator is guards[1].translator
    assert trials == [model]
    other = AnchorLogitsProcessor(model, anchor[1], specialist[1], translation="exact")
    assert other.translator is not guards[0].translator


def test_the_tables_are_freed_with_their_tokenizers(anchor, specialist):
    target = copy.deepcopy(specialist[1])
    target.add_tokens(["wordless"])
    seen = weakref.ref(AnchorLogitsProcessor(*anchor, target).translator)
    gc.collect()
    assert seen() is not None
    del target
    gc.collect()
    assert seen() is None


def test_few_translators_are_kept_for_one_target(anchor, specialist):
    target = copy.deepcopy(specialist[1])
    for i in range(keepers.N_TRANSLATORS + 2):
        anchor[0].generation_config.eos_token_id, before = [i], anchor[0].generation_config.eos_token_id
        try:
            AnchorLogitsProcessor(*anchor, target)
        finally:
            anchor[0].generation_config.eos_token_id = before
    assert len(read_backend(target).translators) == keepers.N_TRANSLATORS


@pytest.mark.parametrize("change", ["attention", "dtype", "layers", "forward", "weights"])
def test_a_changed_model_is_tried_again(change, anchor, specialist, trials):
    model = copy.deepcopy(anchor[0])
    AnchorLogitsProcessor(model, anchor[1], specialist[1])
    before = model_digest(model)
    if change == "attention":
        model.set_attn_implementation("eager")
    elif change == "dtype":
        model.bfloat16()
    elif change == "layers":
        model.model.layers[0].mlp.act_fn = torch.nn.Tanh()
    elif change == "forward":
        model.model.norm.register_forward_hook(lambda *args: None)
    else:
        model.model.norm.weight.data.mul_(2.0)
    assert model_digest(model) != before
    AnchorLogitsProcessor(model, anchor[1], specialist[1])
    assert trials == [model, model]


def test_a_trial_holds_for_later_processes_where_a_model_runs_published_code_alone(anchor, specialist, trials, folder):
    first, second = copy.deepcopy(anchor[0]), copy.deepcopy(anchor[0])
    AnchorLogitsProcessor(first, anchor[1], specialist[1])
    AnchorLogitsProcessor(second, anchor[1], specialist[1])
    assert trials == [first]
    changed = copy.deepcopy(anchor[0])
    changed.model.norm.register_forward_hook(lambda *args: None)
    assert not is_published(changed)
    for model in (changed, copy.deepcopy(changed)):
        AnchorLogitsProcessor(model, anchor[1], specialist[1])
    assert len(trials) == 3


def test_a_model_that_was_asked_for_its_hidden_states_is_as_it_was(anchor):
    """transformers leaves hooks on it."""
    model = copy.deepcopy(anchor[0])
    before = model_digest(model)
    model(torch.tensor([[5, 6]]), output_hidden_states=True)
    assert model_digest(model) == before
    assert is_published(model)


def test_a_failed_trial_is_made_again(anchor, specialist, monkeypatch, folder):
    model = copy.deepcopy(anchor[0])
    results = iter([False, True, True])
    monkeypatch.setattr(branching_cache, "_is_exact", lambda *args: next(results))
    engines = [AnchorLogitsProcessor(model, anchor[1], specialist[1]).steering._engine.__name__ for _ in range(3)]
    assert engines == ["RecomputeEngine", "PackedEngine", "PackedEngine"]
