from types import SimpleNamespace

import pytest
import torch

from hf_alignbeam.steering.generate_call import OVERRULED, GenerateCall, SteeringSchedule

EOS, PAD = 9, 0


class NotedFollower:
    """What a call asks of its anchor, noted."""

    def __init__(self):
        self.n_written = 0
        self.asked = []
        self.cache = SimpleNamespace(n_forwards=1, n_tokens=5)

    def write(self, ids):
        self.n_written += 1
        self.asked.append(("write", ids))

    def can_go_back(self, n_written):
        return n_written <= self.n_written

    def go_back(self, n_written):
        self.n_written = n_written
        self.asked.append(("back", n_written))

    def select_rows(self, parents):
        self.asked.append(("select_rows", parents))


def rules(n_steps=None, n_watch=None):
    return SteeringSchedule(n_steps, n_watch, frozenset([EOS]), PAD)


@pytest.mark.parametrize(
    ("was_active", "overruled", "i", "n_written", "expected"),
    [
        (True, False, 5, 1, True),  # not yet watched
        (True, False, 5, 3, False),  # the anchor has overruled nothing
        (True, True, 5, 3, True),
        (True, True, EOS, 3, False),
        (False, True, PAD, 3, False),  # padding after the end
        (False, True, 5, 3, True),  # an answer that goes on after its end
    ],
)
def test_a_row_is_steered_while_it_must_be(was_active, overruled, i, n_written, expected):
    assert rules(n_watch=3).steers(was_active, overruled, i, n_written) is expected


@pytest.mark.parametrize(("n_written", "overruled", "expected"), [(2, [True], False), (4, [True], True), (3, [False], True)])
def test_steering_is_over_by_number_or_by_agreement(n_written, overruled, expected):
    assert rules(n_steps=4, n_watch=3).are_over(n_written, overruled) is expected


def test_a_token_that_the_target_hardly_writes_is_overruled():
    call = GenerateCall(rules(n_watch=1), torch.tensor([[1, 2], [1, 3]]), NotedFollower(), [0, 1])
    unlikely = torch.full((10,), OVERRULED + 1.0)
    unlikely[4] = OVERRULED - 1.0
    call.first.own_logp = {0: unlikely, 1: unlikely}
    point = call.reach(torch.tensor([[1, 2, 4], [1, 3, 5]]))
    assert point.overruled == [True, False]
    assert point.rows == [0]


def test_rows_swap_among_those_of_one_prompt():
    follower = NotedFollower()
    call = GenerateCall(rules(), torch.zeros(4, 0, dtype=torch.long), follower, [0, 0, 1, 1])
    call.reach(torch.tensor([[5], [6], [6], [5]]))
    call.reach(torch.tensor([[6, 7], [6, 8], [5, 7], [5, 8]]))
    assert follower.asked[1] == ("select_rows", [1, 1, 3, 3])
    assert call.reach(torch.tensor([[7, 7, 1]] * 4)) is None


def test_tokens_are_taken_back():
    follower = NotedFollower()
    call = GenerateCall(rules(), torch.tensor([[1, 2]]), follower, [0])
    for ids in ([1, 2, 3], [1, 2, 3, 4], [1, 2, 5]):
        assert call.reach(torch.tensor([ids])) is not None
    assert follower.asked == [("write", [3]), ("write", [4]), ("back", 0), ("write", [5])]
    assert call.knows(torch.tensor([[1, 2, 6]]))
    assert not call.knows(torch.tensor([[1, 7, 6]]))
    assert not call.knows(torch.tensor([[1, 2, 5, 6, 7]]))


def test_a_call_ends_once():
    ended = []
    call = GenerateCall(rules(), torch.tensor([[1, 2]]), NotedFollower(), [0], lambda: ended.append(1))
    assert call.spent() == (1, 5)
    assert call.spent() == (0, 0)
    call.end()
    call.end()
    assert ended == [1]
    assert call.follower is None


def test_an_error_ends_a_call():
    ended = []
    call = GenerateCall(rules(), torch.tensor([[1, 2]]), NotedFollower(), [0], lambda: ended.append(1))
    with call.ended_by_errors():
        pass
    assert not ended
    with pytest.raises(KeyboardInterrupt), call.ended_by_errors():
        raise KeyboardInterrupt
    assert ended == [1]
