from types import SimpleNamespace

import pytest
import torch

from hf_alignbeam.steering.generate_call import OVERRULED, GenerateCall, SteeringSchedule

EOS, PAD = 9, 0


class RecordingFollower:
    """A follower that only records what a call does with it."""

    def __init__(self):
        self.n_written = 0
        self.actions = []
        self.cache = SimpleNamespace(engine=SimpleNamespace(n_forwards=1, n_tokens=5))

    def write(self, ids):
        self.n_written += 1
        self.actions.append(("write", ids))

    def go_back(self, n_written):
        if n_written > self.n_written:
            return False
        self.n_written = n_written
        self.actions.append(("back", n_written))
        return True

    def select_rows(self, parents):
        self.actions.append(("select_rows", parents))


def schedule(n_steps=None, n_watch=None):
    return SteeringSchedule(n_steps, n_watch, frozenset([EOS]), PAD)


@pytest.mark.parametrize(
    ("was_active", "overruled", "i", "n_written", "expected"),
    [
        (True, False, 5, 1, True),  # before `n_watch` tokens
        (True, False, 5, 3, False),  # the anchor has overruled nothing
        (True, True, 5, 3, True),
        (True, True, EOS, 3, False),
        (False, True, PAD, 3, False),  # padding after the end
        (True, True, PAD, 3, True),  # a token of the answer, as far as ids can show
        (False, True, 5, 3, True),  # an answer that continues after its EOS
    ],
)
def test_a_row_is_steered_until_it_ends_or_the_anchor_is_not_needed(was_active, overruled, i, n_written, expected):
    assert schedule(n_watch=3).steers(was_active, overruled, i, n_written) is expected


@pytest.mark.parametrize(("n_written", "overruled", "expected"), [(2, [True], False), (4, [True], True), (3, [False], True)])
def test_steering_is_over_after_n_steps_or_if_the_anchor_overrules_nothing(n_written, overruled, expected):
    assert schedule(n_steps=4, n_watch=3).is_over(n_written, overruled) is expected


def test_a_row_that_has_ended_is_not_steered_whatever_is_written_after_it():
    follower = RecordingFollower()
    call = GenerateCall(schedule(), torch.tensor([[1, 2], [1, 3]]), follower, [0, 1])
    assert call.advance_to(torch.tensor([[1, 2, 4], [1, 3, 5]]), ended=[1]).steered_rows == [0]
    assert call.write(torch.tensor([[1, 2, 4, 4], [1, 3, 5, 7]]), ended=[1]).steered_rows == [0]
    assert follower.actions == [("write", [4, None]), ("write", [4, None])]


def test_a_token_that_the_target_would_hardly_write_overrules_it():
    call = GenerateCall(schedule(n_watch=1), torch.tensor([[1, 2], [1, 3]]), RecordingFollower(), [0, 1])
    unlikely = torch.full((10,), OVERRULED + 1.0)
    unlikely[4] = OVERRULED - 1.0
    call.initial.target_logp = {0: unlikely, 1: unlikely}
    state = call.advance_to(torch.tensor([[1, 2, 4], [1, 3, 5]]))
    assert state.overruled == [True, False]
    assert state.steered_rows == [0]


def test_rows_swap_only_within_one_prompt():
    follower = RecordingFollower()
    call = GenerateCall(schedule(), torch.zeros(4, 0, dtype=torch.long), follower, [0, 0, 1, 1])
    call.advance_to(torch.tensor([[5], [6], [6], [5]]))
    call.advance_to(torch.tensor([[6, 7], [6, 8], [5, 7], [5, 8]]))
    assert follower.actions[1] == ("select_rows", [1, 1, 3, 3])
    assert call.advance_to(torch.tensor([[7, 7, 1]] * 4)) is None


def test_tokens_can_be_taken_back():
    follower = RecordingFollower()
    call = GenerateCall(schedule(), torch.tensor([[1, 2]]), follower, [0])
    for ids in ([1, 2, 3], [1, 2, 3, 4], [1, 2, 5]):
        assert call.advance_to(torch.tensor([ids])) is not None
    assert follower.actions == [("write", [3]), ("write", [4]), ("back", 0), ("write", [5])]
    assert call.is_rolled_back(torch.tensor([[1, 2, 6]]))
    assert not call.is_rolled_back(torch.tensor([[1, 7, 6]]))
    assert not call.is_rolled_back(torch.tensor([[1, 2, 5, 6, 7]]))


def test_a_call_ends_only_once():
    ended = []
    call = GenerateCall(schedule(), torch.tensor([[1, 2]]), RecordingFollower(), [0], lambda: ended.append(1))
    assert call.uncounted_cost() == (1, 5)
    assert call.uncounted_cost() == (0, 0)
    call.end()
    call.end()
    assert ended == [1]
    assert call.follower is None


def test_an_error_ends_a_call():
    ended = []
    call = GenerateCall(schedule(), torch.tensor([[1, 2]]), RecordingFollower(), [0], lambda: ended.append(1))
    with call.ended_by_errors():
        pass
    assert not ended
    with pytest.raises(KeyboardInterrupt), call.ended_by_errors():
        raise KeyboardInterrupt
    assert ended == [1]
