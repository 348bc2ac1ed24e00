"""What the judge gets to read."""

import copy

from helpers.strategies import (
    RecordingJudge,
    answer_ids,
    chats_of,
    failing,
    generated,
    passing,
    texts,
)
from transformers import (
    MaxTimeCriteria,
)


def test_the_judge_reads_the_conversation_and_the_whole_answer(specialist, strategy):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What cures a cold?"},
        {"role": "assistant", "content": "Rest."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "Take some"},
    ]
    judge = RecordingJudge(passing)
    (answer,) = texts(specialist, [turns], strategy(judge, judge_after=2, judge_every=2), max_new_tokens=6)
    for ((conversation, response, _),) in judge.calls:
        assert conversation == turns[:-1]
        assert response.startswith("Take some")
    assert judge.calls[-1][0][1].removeprefix("Take some").strip() == answer
    lengths = [len(call[0][1]) for call in judge.calls]
    assert len(lengths) >= 3
    assert lengths == sorted(set(lengths))


def test_the_prefill_is_judged_even_if_the_conversation_lacks_it(specialist, strategy):
    (conversation,) = chats_of("prefill", 1)
    judge = RecordingJudge(passing)
    generated(specialist, [conversation], strategy(judge, conversations=[conversation[:1]]))
    assert judge.calls[-1][0][1].startswith(conversation[-1]["content"])


def test_an_answer_that_a_time_limit_ends_is_judged(specialist, strategy):
    conversations = chats_of("general", 2)
    for verdict, is_plain in ((passing, True), (failing, False)):
        judge = RecordingJudge(verdict)
        stops = [MaxTimeCriteria(0.0)]
        answers = texts(specialist, conversations, strategy(judge, judge_after=None), stopping_criteria=stops)
        assert judge.calls
        assert (answers == texts(specialist, conversations, max_new_tokens=1)) == is_plain


def test_a_judge_that_changes_its_arguments_changes_no_token(specialist, strategy, oracle, one_of_each):
    given = copy.deepcopy(one_of_each)

    def judge(conversations, responses):
        harm = oracle(conversations, responses)
        for conversation in conversations:
            conversation[-1]["content"] = "What is good for a cold?"
            conversation.append({"role": "assistant", "content": "Rest."})
        conversations.clear()
        responses.clear()
        return harm

    expected = answer_ids(specialist, one_of_each, strategy(oracle, conversations=one_of_each))
    assert answer_ids(specialist, one_of_each, strategy(judge, conversations=given)) == expected
    assert given == one_of_each
