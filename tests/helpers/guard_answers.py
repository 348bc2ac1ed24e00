"""Answers of completion endpoints as guards write them, with or without probabilities."""

import json
import math

from helpers.moderation_server import respond


def chat(text, tokens=None, **choice):
    """An answer of `/v1/chat/completions`. `tokens` are pairs of a token and the probabilities of others in its place."""
    logprobs = None if tokens is None else {"content": [chat_token(*token) for token in tokens]}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logprobs, **choice}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice]}


def chat_token(token, prob):
    tops = [logprob(each, value) for each, value in prob.items()]
    return {**logprob(token, prob[token]), "top_logprobs": sorted(tops, key=lambda top: -top["logprob"])}


def logprob(token, prob):
    return {"token": token, "logprob": math.log(prob), "bytes": list(token.encode())}


def completion(text, tokens=None):
    """An answer of `/v1/completions`."""
    logprobs = None
    if tokens is not None:
        logprobs = {
            "text_offset": [0] * len(tokens),
            "tokens": [token for token, _ in tokens],
            "token_logprobs": [math.log(prob[token]) for token, prob in tokens],
            "top_logprobs": [{each: math.log(value) for each, value in prob.items()} for _, prob in tokens],
        }
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "model": "m",
        "choices": [{"index": 0, "text": text, "logprobs": logprobs}],
    }


def answering(value):
    """The behavior of a server that answers with a value."""
    return respond(json.dumps(value))


def in_turn(*behaviors):
    """A behavior that is another one at each request, the last one for ever."""
    left = list(behaviors)

    def behave(handler):
        (left.pop(0) if len(left) > 1 else left[0])(handler)

    return behave


def without_probabilities(behave, status=400):
    """A server that refuses requests for probabilities."""

    def behave_or_refuse(handler):
        if "logprobs" in handler.request_body:
            handler.answer(b'{"error": {"message": "logprobs is not supported"}}', status, {})
        else:
            behave(handler)

    return behave_or_refuse
