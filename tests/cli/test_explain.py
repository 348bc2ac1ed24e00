"""One answer explained, in words and as a picture; watching a guard does not change its answer."""

import io
from dataclasses import replace

import pytest
import torch
from helpers.divergences import by_hand
from helpers.strategies import chats_of, failing, generated
from rich.console import Console
from transformers import TextIteratorStreamer

from hf_alignbeam import AnchorLogitsProcessor
from hf_alignbeam.cli.explanation import picture
from hf_alignbeam.cli.explanation.explained import (
    Candidate,
    Explanation,
    Rollback,
    Token,
    Verdict,
    print_explanation,
    rollback_reason,
    summary_lines,
    watch,
)
from hf_alignbeam.cli.explanation.picture import draw

WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.3},
    "beams": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.fixture
def guard(anchor, specialist, translator):
    return AnchorLogitsProcessor(*anchor, specialist[1], translation=translator)


def explained(target, guard, messages, streamer=None, **options):
    watched = watch(guard, messages, target[1], streamer)
    with_guard = {**watched.generate_arguments, **options}
    output, n_prompt = generated(target, [messages], with_guard.pop("custom_generate", None), **with_guard)
    return watched.explain(output[0, n_prompt:].tolist())


def printed(explanation):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="truecolor", legacy_windows=False)
    print_explanation(explanation, console)
    return console.file.getvalue()


@pytest.mark.parametrize("way", WAYS)
def test_watching_a_processor_does_not_change_the_answer(way, specialist, guard):
    for messages in (*chats_of("harmful", 2), *chats_of("domain", 2)):
        plain, n_prompt = generated(specialist, [messages], logits_processor=[guard], **WAYS[way])
        explanation = explained(specialist, guard, messages, **WAYS[way])
        assert [token.id for token in explanation.tokens] == plain[0, n_prompt:].tolist()
        assert explanation.tokens[0].kl is not None


def test_the_kl_of_every_token_follows_from_the_scores(specialist, guard):
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    for messages in (*chats_of("harmful", 2), *chats_of("domain", 2)):
        output, _ = generated(specialist, [messages], logits_processor=[guard], **wanted)
        for token, scores, logits in zip(
            explained(specialist, guard, messages).tokens, output.scores, output.logits, strict=True
        ):
            if token.kl is None:
                assert torch.equal(scores, logits)
            else:
                assert token.kl == pytest.approx(by_hand(scores[0], logits[0]), abs=1e-4)


def test_a_watched_guard_streams_its_answer(specialist, guard, strategy, judge_lm):
    (messages,) = chats_of("late", 1)
    for each in (guard, strategy(judge_lm)):
        streamer = TextIteratorStreamer(specialist[1], skip_prompt=True, timeout=5)
        explanation = explained(specialist, each, messages, streamer=streamer)
        assert "".join(streamer) == specialist[1].decode([token.id for token in explanation.tokens])


def test_an_anchor_that_is_the_target_moves_nothing(specialist):
    twin = AnchorLogitsProcessor(*specialist, specialist[1], n_watch=None, n_steps=8)
    explanation = explained(specialist, twin, chats_of("harmful", 1)[0])
    assert [token.kl for token in explanation.tokens[:8]] == pytest.approx([0.0] * 8, abs=1e-4)
    assert all(token.kl is None for token in explanation.tokens[8:])
    off = AnchorLogitsProcessor(*specialist, specialist[1], alpha=0.0)
    assert all(token.kl is None for token in explained(specialist, off, chats_of("harmful", 1)[0]).tokens)


def test_an_explanation_shows_the_rollback_and_the_chosen_candidate(specialist, strategy, oracle):
    explanation = explained(specialist, strategy(oracle, judge_after=4, judge_every=6), chats_of("late", 1)[0], max_new_tokens=80)
    (sent_back,) = explanation.sent_back
    (chosen,) = (each for each in sent_back.candidates if each.chosen)
    assert sent_back.after > 0
    assert explanation.tokens[sent_back.after :][: len(chosen.tokens)] == chosen.tokens
    assert all(token.kl is None for token in explanation.tokens[: sent_back.after])
    assert all(verdict.passes for verdict in explanation.verdicts)
    assert [verdict.passes for verdict in sent_back.verdicts][-1] is False
    first, second = summary_lines(explanation)
    assert f"Sent back once. After token {sent_back.after} it is candidate" in first
    assert f"of its {len(explanation.tokens)} tokens were steered" in second
    text = printed(explanation)
    assert "goes on" in text
    assert "taken back" in text
    assert rollback_reason(sent_back) in text
    assert "\x1b[30;48;2;" in text  # colours


def test_an_answer_that_passes_is_the_targets_own(specialist, strategy, judge_lm):
    explanation = explained(specialist, strategy(judge_lm), chats_of("domain", 1)[0])
    assert not explanation.sent_back
    assert "token for token" in summary_lines(explanation)[0]
    assert "None of its" in summary_lines(explanation)[1]


def test_the_refusal_text_is_explained(specialist, strategy):
    explanation = explained(specialist, strategy(failing, judge_after=5), chats_of("harmful", 1)[0])
    assert (explanation.chosen, explanation.n_drawn) == (-1, 0)
    assert summary_lines(explanation)[0] == "Sent back once. From the start on no candidate passed, and the refusal text stands."
    assert "".join(token.text for token in explanation.tokens).startswith(" I cannot help with that.")


def test_a_prefill_is_kept_apart_from_the_answer(specialist, strategy, judge_lm):
    messages = chats_of("prefill", 1)[0]
    explanation = explained(specialist, strategy(judge_lm), messages)
    assert explanation.prefill == messages[-1]["content"]
    assert explanation.prompt == messages[-2]["content"]


@pytest.mark.parametrize(
    ("text", "readable"),
    [("é", ["\\xc3", "\\xa9"]), ("\n", ["\\n"]), ("\x1b", ["\\x1b"]), ("\u202e", ["\\xe2", "\\x80", "\\xae"])],
)
def test_unprintable_characters_are_escaped(text, readable, specialist, strategy):
    """Byte fragments, and what would move a terminal's cursor or turn its text around."""
    explanation = explained(specialist, strategy(failing, judge_after=2, refusal=f"a{text}b"), chats_of("harmful", 1)[0])
    shown = [token.text for token in explanation.tokens]
    assert "".join(shown).replace(" ", "") == f"a{''.join(readable)}b</s>"
    assert set(readable) <= set(shown)


TOKENS = [Token(1, " café", 2.0), Token(2, "日本", 0.01), Token(3, "🙂$a_b$", None), Token(4, " \\xf0", 0.0)]


@pytest.fixture
def odd():
    """An explanation with everything that can stand in one."""
    tried = [Candidate(TOKENS, None, 0.2, -1.0, False), Candidate(TOKENS * 20, 0.2, 0.2, -0.5, True)]
    back = [
        Rollback(0, TOKENS * 9, [Verdict(8, 0.1, 0.5), Verdict(9, 0.9, 0.5), Verdict(36, None, 0.5)], tried),
        Rollback(80, [], [], tried),
    ]
    verdicts = [Verdict(n, 0.25, 0.5) for n in (1, 2, 3, 23, 24, 40, 80)]
    return Explanation("What\nis $x$ or $y$? " * 40, "It is", TOKENS * 25, 90, 2, verdicts, back)


def test_anything_can_be_drawn_and_printed(odd, tmp_path):
    for name, each in {
        "whole": odd,
        "refused": replace(odd, chosen=-1, tokens=[]),
        "one": Explanation("?", "", [Token(1, "x" * 300, None)], 1),
    }.items():
        draw(each, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert printed(each)
    assert "no verdict" in printed(odd)


def test_a_long_answer_is_drawn_at_a_lower_resolution(odd, tmp_path, monkeypatch):
    """Agg has a largest size."""
    monkeypatch.setattr(picture, "MOST_PIXELS", 500)
    draw(odd, tmp_path / "x.png")
    height = int.from_bytes((tmp_path / "x.png").read_bytes()[20:24])
    assert 490 < height <= 500
