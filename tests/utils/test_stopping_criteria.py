"""Criteria that keep a verdict for each row work with any rows; what a strategy does to other rows changes none of theirs."""

import pytest
import torch
from helpers.strategies import chats_of, flags_first_call, generated, passing
from transformers import StoppingCriteria

from hf_alignbeam.utils.stopping_criteria import stateless_criteria


class Seen(StoppingCriteria):
    """Stops a row for good once its last token is a certain one, and remembers that in a list or in a tensor."""

    def __init__(self, i, n_rows, as_tensor):
        self.i, self.seen = i, torch.zeros(n_rows, dtype=torch.bool) if as_tensor else [False] * n_rows

    def __call__(self, input_ids, scores, **kwargs):
        for row, last in enumerate(input_ids[: len(self.seen), -1].tolist()):
            self.seen[row] = bool(self.seen[row]) or last == self.i
        return torch.as_tensor(self.seen)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_verdict_by_row_is_of_the_rows_that_are_given(as_tensor):
    (criterion,) = stateless_criteria([Seen(7, 2, as_tensor)], 2)
    assert criterion(torch.tensor([[7], [1], [7]]), None).tolist() == [True, False, True]
    assert criterion(torch.tensor([[1], [1]]), None).tolist() == [False, False]
    assert not any(criterion._criterion.seen)


def test_other_criteria_are_left_as_they_are():
    stopped, other = Seen(7, 2, False), Seen(7, 3, True)
    stopped.seen[0] = True
    assert list(stateless_criteria([stopped, other], 2)) == [stopped, other]
    assert not stateless_criteria(None, 2)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_rows_that_pass_stop_where_plain_generate_stops_them(as_tensor, specialist, strategy):
    conversations = [*chats_of("general", 1), *chats_of("harmful", 1)]
    stop = specialist[1].convert_tokens_to_ids(".")

    def answers(guard):
        return generated(specialist, conversations, guard, stopping_criteria=[Seen(stop, 2, as_tensor)])[0]

    plain = answers(None)
    assert torch.equal(answers(strategy(passing, judge_after=4)), plain)
    flagged = answers(strategy(flags_first_call(), judge_after=4, num_candidates=3))
    assert stop in flagged[0].tolist()
    assert not torch.equal(flagged, plain)
