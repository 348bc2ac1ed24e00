"""Results that are cached with their object."""

import copy
import gc
import weakref

from hf_alignbeam.benchmarks.cleared_caches import clear_method_caches
from hf_alignbeam.utils.method_cache import cached_method


class Squares:
    def __init__(self, offset=0):
        self.offset = offset
        self.computed = []

    @cached_method(maxsize=2)
    def square(self, x):
        """The square of a number."""
        self.computed.append(x)
        return x * x + self.offset

    @cached_method(maxsize=2)
    def cube(self, x):
        return x**3


def test_a_result_is_computed_once():
    squares = Squares()
    assert [squares.square(3), squares.square(3), squares.cube(3)] == [9, 9, 27]
    assert squares.computed == [3]


def test_only_the_last_results_are_kept():
    squares = Squares()
    for x in (1, 2, 3, 1):
        squares.square(x)
    assert squares.computed == [1, 2, 3, 1]


def test_every_object_has_results_of_its_own():
    assert Squares(1).square(3) == 10
    assert Squares(2).square(3) == 11


def test_a_cached_result_does_not_keep_its_object_alive():
    squares = Squares()
    squares.square(3)
    gone = weakref.ref(squares)
    del squares
    gc.collect()
    assert gone() is None


def test_a_copy_computes_anew_once_its_caches_are_cleared():
    squares = Squares(1)
    squares.square(3)
    other = copy.copy(squares)
    clear_method_caches(other)
    other.offset = 2
    assert other.square(3) == 11
    assert squares.square(3) == 10
    assert vars(other).keys() == vars(squares).keys()


def test_a_cached_method_keeps_its_name_and_docstring():
    assert Squares.square.__name__ == "square"
    assert Squares.square.__doc__ == "The square of a number."
