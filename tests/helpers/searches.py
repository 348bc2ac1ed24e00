"""Prompts for tests of the embedding search."""

from hf_alignbeam import testbed

N_NEW = 40


GREEDY = {"max_new_tokens": N_NEW, "do_sample": False}


def framed(n, start=0):
    return [p.conversation for p in testbed.prompts("validation", "harmful") if p.framing][start : start + n]


def harmless(n):
    return [p.conversation for p in testbed.prompts("validation", "general")[:n]]
