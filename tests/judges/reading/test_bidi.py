"""Directional controls turn parts of a text around on the screen: a judge reads what is shown, by the rules of UAX 9."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_alignbeam.judges.reading.bidi import shown_order
from hf_alignbeam.judges.reading.folding import fold

LRE, RLE, PDF, LRO, RLO = "\u202a\u202b\u202c\u202d\u202e"
LRI, RLI, FSI, PDI = "\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (f"a {RLO}bmob{PDF} c", "a bomb c"),
        (f"{RLO}21 bmob", "bomb 12"),
        (f"{LRI}{RLO}bmob{PDI} I am sorry", "bomb I am sorry"),
        (f"{RLI}{LRI}mb{PDI}{LRI}bo{PDI}{PDI}", "bomb"),
        (f"{RLI}{FSI}mb{PDI}{FSI}bo{PDI}", "bomb"),
        (f"{RLI}bo{LRI}mb{PDI}{PDI}\nmb{PDI}", f"mbbo\nmb{PDI}"),
        (f"{RLO}{LRO}mb{PDF}\u034f{LRO}bo{PDF}{PDF}", "bo\u034fmb"),
        (f"{RLE}{LRE}bo{PDF}{LRE}mb{PDF}{PDF}", "bomb"),  # one level, so nothing moves
        (f"{RLI}hello world 12{PDI}", "hello world 12"),
        (f"{RLO}e\u0301c{PDF}", "ce\u0301"),
        (f"{RLO * 200}bmob", "bomb"),
        (f"{LRO}םולש{PDF}", "שלום"),
        (f"{RLO}שלום{PDF} {RLO}bmob{PDF}", "שלום bomb"),
        (f"{RLI}{LRI}mb{PDI}\u05b0{LRI}bo{PDI}שלום{PDI}", "שלוםbo\u05b0mb"),
    ],
)
def test_a_part_is_read_in_the_order_in_which_it_is_shown(written, shown):
    assert shown_order(written) == shown


def test_words_whose_halves_change_places_are_seen_through():
    """The halves of each word are written the wrong way round, and isolates show them the right way round."""
    sentence = "mix the acid and pour it out quietly"
    halves = [(word[: len(word) // 2], word[len(word) // 2 :]) for word in sentence.split()]
    assert fold(" ".join(f"{RLI}{LRI}{end}{PDI}{LRI}{begin}{PDI}{PDI}" for begin, end in halves)) == sentence


@pytest.mark.parametrize(
    "text",
    [
        f"He said {RLE}שלום עולם{PDF} today.",
        f"{RLI}הספר {LRI}Dune{PDI} טוב, והמחיר 25 ש״ח{PDI}",
        f"{RLE}النظام Windows 11 معروف{PDF}",
        f"The title is {FSI}Dune{PDI}.",
    ],
)
def test_ordinary_parts_of_right_to_left_languages_stay(text):
    assert shown_order(text) == text


@given(st.text(f"{LRE}{RLE}{PDF}{LRO}{RLO}{LRI}{RLI}{FSI}{PDI}ab1 .שا\u0301", max_size=40))
def test_a_first_strong_isolate_is_an_isolate_in_the_direction_of_the_first_letter_after_it(text):
    resolved = ""
    for place, char in enumerate(text):
        first = next((kind for kind in map(unicodedata.bidirectional, text[place:]) if kind in ("L", "R", "AL")), "L")
        resolved += char if char != FSI else LRI if first == "L" else RLI
    isolates = str.maketrans("", "", LRI + RLI + FSI)
    assert shown_order(RLI + text).translate(isolates) == shown_order(RLI + resolved).translate(isolates)


def test_nested_and_unmatched_controls_and_piles_of_marks_are_read_once():
    """A text that was read anew for each of them would take hours."""
    n = 100_000
    assert shown_order(RLI + FSI * n) == ""
    assert shown_order(RLE * n + PDI * n) == ""
    assert shown_order(f"{RLI}a" + "\u0301" * n) == "a" + "\u0301" * n
