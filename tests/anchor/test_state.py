"""The largest values of wide rows, found by stretches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_alignbeam.anchor.state import STRETCH, largest


@pytest.mark.parametrize("width", [1, STRETCH, 3 * STRETCH + 5, 40 * STRETCH, 40 * STRETCH + 1, 41 * STRETCH - 1])
@pytest.mark.parametrize("n", [1, 8, 64])
def test_the_largest_values_are_those_of_the_whole_row(width, n):
    values = torch.randn(3, width, generator=torch.Generator().manual_seed(width + n))
    expected = values.topk(min(n, width))
    for found, numbers, columns in zip(largest(values, n), expected.values.tolist(), expected.indices.tolist(), strict=True):
        assert list(found.values()) == numbers
        assert list(found) == columns


@given(st.lists(st.integers(0, 30 * STRETCH - 1), min_size=1, max_size=8, unique=True))
def test_a_few_values_are_found_wherever_they_stand(columns):
    values = torch.zeros(1, 30 * STRETCH)
    values[0, columns] = torch.arange(1.0, len(columns) + 1)
    (found,) = largest(values, len(columns))
    assert found == {column: float(n) for n, column in enumerate(columns, start=1)}
