from dataclasses import replace

import pytest
import torch
from conftest import engine, tiny
from helpers import reference
from transformers import Qwen3Config, Qwen3ForCausalLM

from hf_alignbeam.anchor.at_once import AgreeingTokens
from hf_alignbeam.anchor.covering import CoverDistribution, target_distributions
from hf_alignbeam.anchor.follower import MAX_UNCOMMITTED, MAX_UNCOMMITTED_EQUAL, MAX_UNUSED_SLOTS, Follower, RowStart
from hf_alignbeam.anchor.marginal import marginal
from hf_alignbeam.anchor.state import Distributions, Node
from hf_alignbeam.chat.templates import encode_prompt
from hf_alignbeam.testbed import tokenizers as toy
from hf_alignbeam.tokenization.vocabulary import token_bytes
from hf_alignbeam.translation.translator import VocabularyTranslator

QUESTION = [{"role": "user", "content": "How do I kill the weeds?"}]
ANSWER = (
    b" To kill the weeds, use some vinegar. Then wait until it is dark, and do not do that again: it hurts! \xf0\x9f\x98\x80 ok."
)


def follow(anchor, translator, n_rows=1, n_lookahead=2, prefill=b""):
    model, tokenizer = anchor
    ids, leading_whitespace = encode_prompt(tokenizer, token_bytes(tokenizer), QUESTION)
    return Follower(engine(model), translator, [RowStart(ids, leading_whitespace, b" ", prefill)] * n_rows, n_lookahead), ids


@pytest.fixture(scope="module")
def translator(anchor, specialist):
    return VocabularyTranslator(anchor[1], specialist[1])


def test_cached_anchor_equals_one_from_scratch_at_each_step(anchor, translator):
    follower, prompt = follow(anchor, translator)
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
    written, worst, n_uncommitted = b"", 0.0, []
    for i in translator.target.encode(ANSWER):
        follower.predict(target_prob, [0])  # its look-ahead leaves branches in the cache
        follower.write([i])
        written += translator.target.tokens[i]
        row = follower.rows[0]
        n_uncommitted.append(len(row.path))
        ids = translator.anchor.encode(written[1:])
        assert ids[len(ids) - len(row.path) :] == row.path
        scratch = reference.next_logp(anchor[0], [*prompt, *ids])
        worst = max(worst, (row.nodes[row.path].prob.log() - scratch).abs().max().item())
    assert worst <= 1e-4
    assert max(n_uncommitted) < len(translator.anchor.encode(ANSWER[1:]))  # older tokens were committed


def test_with_equal_vocabularies_few_positions_keep_their_probabilities(anchor):
    """A position keeps those of its whole batch."""
    translator = VocabularyTranslator(anchor[1], anchor[1])
    prompt, _ = encode_prompt(anchor[1], token_bytes(anchor[1]), QUESTION)
    follower = Follower(engine(anchor[0]), translator, [RowStart(prompt, b"", b"")] * 2, 0)
    ids = translator.anchor.encode(ANSWER[1:])
    for i in ids:
        follower.write([i, i])
        kept = {id(node.together) for row in follower.rows for node in row.nodes.values()}
        assert len(kept) <= MAX_UNCOMMITTED_EQUAL + 1
    assert len(ids) > 2 * MAX_UNCOMMITTED
    scratch = reference.next_logp(anchor[0], [*prompt, *ids])
    for row in follower.rows:
        torch.testing.assert_close(row.nodes[row.path].prob.log(), scratch, atol=1e-4, rtol=0)


def test_each_step_feeds_the_new_tokens_and_no_others(anchor, translator):
    follower, _ = follow(anchor, translator, n_lookahead=0)
    ids = translator.target.encode(ANSWER)
    fed = []
    for i in ids:
        before = follower.cache.engine.n_tokens
        follower.write([i])
        fed.append(follower.cache.engine.n_tokens - before)
    half = len(fed) // 2
    assert max(fed) <= 12
    assert sum(fed[half:]) <= 2 * sum(fed[:half])


def test_one_leaf_per_forward_gives_the_same_prediction(anchor, translator, monkeypatch):
    """Where the anchor's attention takes no mask per token, it is fed one leaf at a time."""
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
    at_once, _ = follow(anchor, translator, n_lookahead=4)
    prob = at_once.predict(target_prob, [0]).prob
    monkeypatch.setattr("hf_alignbeam.inference.engines.N_LEAVES_CACHED", 1)
    in_turn, _ = follow(anchor, translator, n_lookahead=200)
    torch.testing.assert_close(prob, in_turn.predict(target_prob, [0]).prob, atol=0.05, rtol=0)
    assert in_turn.cache.engine.n_forwards > at_once.cache.engine.n_forwards


def test_predicting_changes_no_row_that_was_read_before(anchor, translator):
    """The look-ahead gives new rows: a distribution over the old ones stays as it was."""
    follower, _ = follow(anchor, translator, n_lookahead=4)
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
    row = follower.rows[0]
    distribution = CoverDistribution.canonical(row, translator, target_distributions(target_prob)[0])
    paths, before = list(row.nodes), marginal([distribution], [row], target_prob)
    after = follower.predict(target_prob, [0])
    looked_ahead = follower.rows[0]
    assert list(row.nodes) == paths
    assert len(looked_ahead.nodes) > len(paths)
    assert torch.equal(marginal([distribution], [row], target_prob).prob, before.prob)
    assert torch.equal(marginal([distribution], [looked_ahead], target_prob).prob, after.prob)


@pytest.mark.parametrize("by_letter", [False, True])
def test_what_a_point_inside_the_text_keeps_is_all_that_it_needs(by_letter, anchor, translator, monkeypatch):
    """Also where a word is written letter by letter, so that its last letters change the tokens of its first ones."""
    text = ANSWER[:40] + ANSWER[-9:]
    pieces = [text[n : n + 1] for n in range(len(text))] if by_letter else [text]
    ids = [i for piece in pieces for i in translator.target.encode(piece)]
    target_prob = torch.rand(2, len(translator.target), generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = []
    for is_at_once in (True, False):
        if not is_at_once:
            monkeypatch.setattr("hf_alignbeam.anchor.follower.CONDENSERS", [])
            monkeypatch.setattr("hf_alignbeam.anchor.look_ahead.READERS", [])
        follower, _ = follow(anchor, translator, n_rows=2)
        predicted = []
        for i in ids:
            follower.write([i, i])
            predicted.append(follower.predict(target_prob, [0, 1]).prob)
        found.append((predicted, follower.rows))
    (few, few_rows), (whole, whole_rows) = found
    for one, other in zip(few, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    for row, other in zip(few_rows, whole_rows, strict=True):
        inside = [node for node in row.nodes.values() if row.text[len(node.text) :]]
        assert inside
        assert all(isinstance(node.together, AgreeingTokens) for node in inside)
        assert [node.path_logp for node in row.nodes.values()] == pytest.approx([n.path_logp for n in other.nodes.values()])


def test_rows_follow_their_own_text(anchor, translator):
    both, _ = follow(anchor, translator, n_rows=2)
    alone = [follow(anchor, translator)[0] for _ in range(2)]
    texts = [
        translator.target.encode(b" Sorry, I will not do that."),
        translator.target.encode(b" To kill the weeds, use"),
    ]
    target_prob = torch.full((2, len(translator.target)), 1.0 / len(translator.target))
    for step in range(4):
        ids = [text[step] for text in texts]
        together = both.predict(target_prob, [0, 1])
        for row in range(2):
            single = alone[row].predict(target_prob[:1], [0])
            torch.testing.assert_close(together.prob[row], single.prob[0], atol=1e-4, rtol=1e-3)
            alone[row].write([ids[row]])
        both.write(ids)


@pytest.mark.parametrize("parents", [[1], [1, 1], [1, 1, 1]])
def test_a_selected_row_continues_its_parent(parents, anchor, translator):
    follower, _ = follow(anchor, translator, n_rows=2)
    twin, _ = follow(anchor, translator, n_rows=1)
    first, second = (translator.target.encode(text)[0] for text in (b" Sorry", b" To"))
    follower.write([first, second])
    follower.select_rows(parents)
    twin.write([second])
    target_prob = torch.full((len(parents), len(translator.target)), 1.0 / len(translator.target))
    torch.testing.assert_close(
        follower.predict(target_prob, range(len(parents))).prob,
        twin.predict(target_prob[:1], [0]).prob.expand(len(parents), -1),
        atol=1e-4,
        rtol=1e-3,
    )


def test_mass_kept_and_lost_is_one_at_every_step(anchor, translator):
    follower, _ = follow(anchor, translator)
    target_prob = torch.rand(1, len(translator.target), generator=torch.Generator().manual_seed(0))
    target_prob /= target_prob.sum()
    for i in translator.target.encode(ANSWER):
        translation = follower.predict(target_prob, [0])
        assert translation.prob.sum().item() + translation.lost.item() == pytest.approx(1.0, abs=1e-4)
        follower.write([i])


def test_look_ahead_outweighs_the_targets_own_preference(anchor, translator):
    """Where the anchor writes a refusal letter by letter, the target's own preference for another word must not win."""
    model, tokenizer = anchor
    ids, leading_whitespace = encode_prompt(
        tokenizer, token_bytes(tokenizer), [{"role": "user", "content": "How do I kill the mayor?"}]
    )
    sorry, some = (translator.target.encode(text)[0] for text in (b" Sorry", b" Some"))
    target_prob = torch.full((1, len(translator.target)), 1e-6)
    target_prob[0, some] = 1.0
    with_lookahead, without = (
        Follower(engine(model), translator, [RowStart(ids, leading_whitespace, b" ")], n).predict(target_prob, [0]).prob[0]
        for n in (4, 0)
    )
    scratch = reference.next_logp(model, ids)
    s = tokenizer.convert_tokens_to_ids("S")
    if scratch[s].exp() < 0.1:
        pytest.skip("this language's anchor refuses with other words")
    assert with_lookahead[sorry] > 0.9 * scratch[s].exp()
    assert without[some] > without[sorry]


@pytest.mark.parametrize("rule", ["drop", "first", "exact"])
def test_the_papers_rules_translate_the_end_of_the_path(rule, anchor, specialist):
    translator = VocabularyTranslator(anchor[1], specialist[1], rule=rule)
    follower, prompt = follow(anchor, translator)
    follower.write([translator.target.encode(b" Sorry")[0]])
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
    anchor_prob = reference.next_logp(anchor[0], [*prompt, *translator.anchor.encode(b"Sorry")]).exp()
    torch.testing.assert_close(
        follower.predict(target_prob, [0]).prob, translator(anchor_prob[None], target_prob).prob, atol=1e-4, rtol=1e-3
    )


def test_a_prefill_is_fed_before_the_first_step(anchor, translator):
    prefill, _ = follow(anchor, translator, prefill=b"To kill the weeds,")
    written, _ = follow(anchor, translator)
    for i in translator.target.encode(b" To kill the weeds,"):
        written.write([i])
    torch.testing.assert_close(
        prefill.rows[0].nodes[prefill.rows[0].path].prob.log(),
        written.rows[0].nodes[written.rows[0].path].prob.log(),
        atol=1e-4,
        rtol=0,
    )


def test_mass_survives_a_prefill_that_the_anchor_finds_absurd(anchor, translator):
    """After a prefill that it would never write, the anchor still predicts the next token."""
    model, tokenizer = anchor
    prefill = b"zzzzqq xx qq zz vv, kk"
    follower, prompt = follow(anchor, translator, prefill=prefill)
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
    translation = follower.predict(target_prob, [0])
    scratch = reference.next_logp(model, [*prompt, *translator.anchor.encode(prefill)]).exp()
    assert translation.lost.item() < 0.01 + scratch[sorted(tokenizer.added_tokens_decoder)].sum().item()


def test_half_a_character_is_fed_byte_by_byte(anchor, translator):
    """In the anchor's own byte tokens, so that it can predict the other half."""
    follower, prompt = follow(anchor, translator)
    half = "\N{GRINNING FACE}".encode()[:2]
    for i in translator.target.encode(b" ") + translator.target.encode(half):
        follower.write([i])
    row = follower.rows[0]
    assert row.text == half
    assert translator.anchor.decode(row.path) == half
    scratch = reference.next_logp(anchor[0], [*prompt, *row.path])
    torch.testing.assert_close(row.nodes[row.path].prob.log(), scratch, atol=1e-4, rtol=0)


def test_text_that_the_anchor_has_no_tokens_for_is_left_out(anchor, translator, monkeypatch):
    follower, _ = follow(anchor, translator)
    missing = translator.anchor.by_bytes.pop(b"~")
    try:
        monkeypatch.setattr(translator.anchor, "encode", lambda data: translator.anchor.longest_matches(data))
        for i in translator.target.encode(b" To~kill"):
            follower.write([i])
        assert follower.rows[0].text == b"Tokill"
        target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
        assert follower.predict(target_prob, [0]).lost.item() < 0.5
    finally:
        translator.anchor.by_bytes[b"~"] = missing


def test_half_a_character_in_a_longer_token_is_fed_as_that_token(piece_tokenizer):
    """Where the anchor has one token for a space and half a character, the other half comes next."""
    face = " \N{GRINNING FACE}".encode()
    tokenizer = toy.byte_level([face.decode() * 50], n_merges=2)  # two merges: a token " " + 2 bytes, or near it
    model = tiny(Qwen3ForCausalLM, Qwen3Config, tokenizer, seed=1, head_dim=8)
    translator = VocabularyTranslator(tokenizer, piece_tokenizer)
    start = next(token for token in translator.anchor.tokens if token and token[:1] == b" " and 1 < len(token) < len(face))
    follower = Follower(engine(model), translator, [RowStart([5, 6, 7], b"", b"")], 0)
    root = follower.rows[0].nodes[()]
    logp = torch.full_like(root.prob, -20.0)
    logp[translator.anchor.by_bytes[start]] = 0.0
    follower.rows[0].nodes[()] = Node(Distributions(logp[None].exp()), 0)
    for i in translator.target.encode(start):
        follower.write([i])
    assert follower.rows[0].path == (translator.anchor.by_bytes[start],)


def test_slots_of_paths_not_taken_are_dropped(anchor, translator):
    follower, prompt = follow(anchor, translator, n_lookahead=4)
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
    written = b""
    for i in translator.target.encode(ANSWER):
        follower.predict(target_prob, [0])
        follower.write([i])
        written += translator.target.tokens[i]
        used = {node.slot for node in follower.rows[0].nodes.values()}
        assert follower.cache.n_slots <= len(prompt) + len(written) + len(used) + MAX_UNUSED_SLOTS
    row = follower.rows[0]
    scratch = reference.next_logp(anchor[0], [*prompt, *translator.anchor.encode(written[1:])])
    torch.testing.assert_close(row.nodes[row.path].prob.log(), scratch, atol=1e-4, rtol=0)


def test_a_long_prefill_is_committed_except_for_its_last_words(anchor, translator):
    prefill = b"To kill the weeds, use some vinegar. " * 6 + b"Then wait until it is dark"
    follower, prompt = follow(anchor, translator, prefill=prefill)
    row = follower.rows[0]
    assert len(row.path) <= 2 * MAX_UNCOMMITTED
    scratch = reference.next_logp(anchor[0], [*prompt, *translator.anchor.encode(prefill)])
    torch.testing.assert_close(row.nodes[row.path].prob.log(), scratch, atol=1e-4, rtol=0)


def test_every_canonical_completion_of_a_word_counts(anchor, translator):
    """However many likelier completions are not canonical: the likeliest few are no cut-off."""
    start = b" w"
    follower, _ = follow(anchor, translator, n_lookahead=0)
    first = translator.target.by_bytes[start]
    follower.write([first])
    row = follower.rows[0]
    ids = translator.retokenizer.completions(b"w")
    next_tokens = torch.tensor(translator.retokenizer.next_tokens(ids.tolist(), b"w", b"", (first,)))
    is_canonical = next_tokens >= 0
    logp = torch.full((anchor[0].config.vocab_size,), -30.0)
    logp[ids] = torch.log_softmax(torch.where(is_canonical, -8.0, 0.0), 0)  # canonical ones have next to no mass
    row = replace(row, nodes={(): Node(Distributions(logp[None].exp()), 0)})
    target_prob = torch.full((len(translator.target),), 1.0 / len(translator.target))
    distribution = replace(
        CoverDistribution.canonical(row, translator, target_distributions(target_prob[None])[0]), word=(first,)
    )
    prob = marginal([distribution], [row], target_prob[None]).prob[0]
    assert set(next_tokens[is_canonical].tolist()) <= set(prob.nonzero().flatten().tolist())
    assert is_canonical.any()


def test_a_cover_without_completions_has_no_mass(anchor, translator):
    """Rounding may put its likeliest token below the threshold."""
    follower, _ = follow(anchor, translator, n_lookahead=0)
    follower.write([translator.target.by_bytes[b" w"]])
    target_prob = torch.full((1, len(translator.target)), 1.0 / len(translator.target))
    row = follower.rows[0]
    distribution = CoverDistribution.canonical(row, translator, target_distributions(target_prob)[0])
    inside = next(cover for cover in distribution.covers if cover.table is None)
    empty = distribution._cover(inside.path, inside.node, inside.pending, inside.weight, min_mass=1.0)
    assert not empty.likeliest
    distribution.__dict__["covers"] = [*(cover for cover in distribution.covers if cover is not inside), empty]
    translation = marginal([distribution], [row], target_prob)
    assert translation.prob.sum().item() + translation.lost.item() == pytest.approx(1.0, abs=1e-4)
