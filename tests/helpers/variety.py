"""A part of a law's variety for the default suite; the rest of it is slow."""

import pytest


def mostly_slow(values, quick):
    """The values of a parameter, or tuples of several: those that are not among `quick` are marked slow."""
    return [
        pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=() if each in quick else pytest.mark.slow)
        for each in values
    ]
