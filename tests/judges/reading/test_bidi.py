"""Directional controls turn parts of a text around on the screen: a judge reads what is shown, by the rules of UAX 9."""

import pytest

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
