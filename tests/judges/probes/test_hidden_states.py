"""States from a cache against those of each exchange alone, for any history of calls."""

import random
import threading

import pytest
import torch

from hf_alignbeam.benchmarks.tiny_families import build
from hf_alignbeam.inference.engines import KeyValueEngine, RecomputeEngine
from hf_alignbeam.judges.probes.hidden_states import WINDOW, StateReader, captured_states


def alone(model, prompt, response):
    """The definition: states of the whole text, those after the prompt's last id, and means over windows."""
    with torch.no_grad():
        layers = model(torch.tensor([[*prompt, *response]]), output_hidden_states=True).hidden_states
    states = torch.cat(layers[len(layers) // 2 :], dim=-1)[0]
    starts = [n for n in range(0, len(response), WINDOW) if n == 0 or len(response) - n >= WINDOW // 2]
    ends = [*starts[1:], len(response)] if response else []
    return states[len(prompt) - 1], [states[len(prompt) :][start:end].mean(0) for start, end in zip(starts, ends, strict=True)]


def check(model, reader, prompts, responses):
    for prompt, response, (request, windows) in zip(prompts, responses, reader.read(prompts, responses), strict=True):
        expected, parts = alone(model, prompt, response)
        torch.testing.assert_close(request, expected, atol=2e-4, rtol=1e-3)
        assert len(windows) == len(parts)
        for window, part in zip(windows, parts, strict=True):
            torch.testing.assert_close(window, part, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("engine", [KeyValueEngine, RecomputeEngine])
@pytest.mark.parametrize("name", ["Llama", "Gemma 2"])
def test_any_history_equals_each_exchange_alone(name, engine, byte_tokenizer):
    model, rng = build(name, byte_tokenizer), random.Random(3)
    reader = StateReader(model, engine)
    ids = lambda n: [rng.randrange(5, 300) for _ in range(n)]  # noqa: E731
    system = ids(6)
    prompts = [system + ids(n) for n in (3, 9, 1)]
    answers = [ids(60) for _ in prompts]
    for n in (0, 5, 17, 25, 60, 4):  # grow, and shrink
        check(model, reader, prompts, [answer[:n] for answer in answers])
    check(model, reader, [prompts[2], prompts[0], prompts[2]], [answers[0][:7], [], answers[1][:40]])
    check(model, reader, [prompts[0], ids(4)], [answers[0], answers[1][:3]])
    check(model, reader, [ids(1), ids(2)], [[], ids(3)])  # nothing in common


def test_a_conversation_is_fed_once_whatever_its_responses(tiny_qwen):
    reader = StateReader(tiny_qwen, KeyValueEngine)
    system, shapes = list(range(10, 30)), []
    prompts = [[*system, 40, 41, 42], [*system, 50, 51]]
    hook = tiny_qwen.register_forward_pre_hook(
        lambda module, args, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    try:
        reader.read([prompts[0], prompts[0], prompts[1]], [[7, 8], [9], [6]])
        reader.read([prompts[1], prompts[0]], [[7] * 20, [9]])
    finally:
        hook.remove()
    assert shapes == [(1, 20), (2, 3), (3, 2), (2, 20)]


def test_no_hook_stays_and_an_error_leaves_no_cache(tiny_qwen):
    reader = StateReader(tiny_qwen, KeyValueEngine)
    with pytest.raises((IndexError, RuntimeError)):
        reader.read([[5, 6]], [[10**9]])
    assert not tiny_qwen._forward_hooks
    assert not tiny_qwen._forward_pre_hooks
    check(tiny_qwen, reader, [[5, 6]], [[7, 8, 9]])


def test_another_threads_forwards_are_left_alone(tiny_qwen):
    """An anchor may be the same model object."""
    ids = torch.tensor([[5, 6, 7]])
    with captured_states(tiny_qwen) as states:
        thread = threading.Thread(target=lambda: outputs.append(tiny_qwen(ids)))
        outputs = []
        thread.start()
        thread.join()
        assert not states
        assert outputs[0].hidden_states is None
        tiny_qwen(ids)
    assert [tuple(layer.shape) for layer in states] == [(1, 3, 32)] * 2
