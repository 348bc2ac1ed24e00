"""A model's hidden states at the end of a conversation, and over a response to it.

Knows ids, a model's cache and its layers. Knows no text and no verdict.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_alignbeam.inference.engines import Engine, KeyValueEngine, input_device
from hf_alignbeam.inference.incremental import n_common

#: How many tokens of a response are read as one: long enough to tell a refusal, short enough that nothing hides beside one.
WINDOW = 16


class States(NamedTuple):
    """Hidden states of one exchange: (D,) at the end of the conversation, (windows, D) means over parts of the response."""

    request: Tensor
    response: Tensor


@dataclass
class _FedPrompts:
    """The conversations that a model was last fed: their ids by row, their states (rows, D), and the engine's slots."""

    engine: KeyValueEngine
    prompts: list[tuple[int, ...]]
    states: Tensor
    ids: Tensor
    mask: Tensor


class StateReader:
    """Reads the states of a model's layers from the middle one on. Each conversation is fed once, whatever responses it has.

    Args:
        model: A decoder.
        engine: The engine class that runs it (`choose_engine`).
    """

    def __init__(self, model: PreTrainedModel, engine: type[Engine]):
        self._model = model
        self._caches = issubclass(engine, KeyValueEngine)  # not packed: its tokens stand in other places
        self._threads = threading.local()

    def read(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[States]:
        """The states of n exchanges.

        Args:
            prompts: The ids of each conversation up to the response.
            responses: The ids of each response; an empty one has no windows.
        """
        if not self._caches:
            return [self._read_alone([*prompt, *ids], len(prompt)) for prompt, ids in zip(prompts, responses, strict=True)]
        rows = list(map(tuple, prompts))
        last, self._threads.fed = getattr(self._threads, "fed", None), None  # after an error the cache is not used again
        fed = self._feed_prompts(rows) if last is None or not set(rows) <= set(last.prompts) else last
        parents = torch.tensor([fed.prompts.index(row) for row in rows])
        n_slots = fed.ids.shape[1]
        fed.engine.keep(torch.arange(n_slots))
        fed.engine.select_rows(parents)
        fed = _FedPrompts(fed.engine, rows, fed.states[parents], fed.ids[parents], fed.mask[parents])
        windows = self._feed_responses(fed, responses)
        self._threads.fed = fed
        return [States(request, response) for request, response in zip(fed.states, windows, strict=True)]

    def _feed_prompts(self, rows: Sequence[tuple[int, ...]]) -> _FedPrompts:
        """Feed what conversations begin with, such as a system message, once, and then the rest of each."""
        distinct = list(dict.fromkeys(rows))
        n_shared = min(n_common(distinct[0], row) for row in distinct[1:]) if len(distinct) > 1 else 0
        n_shared = min(n_shared, *(len(row) - 1 for row in distinct))
        engine = KeyValueEngine(self._model)
        shared = torch.tensor([distinct[0][:n_shared]], dtype=torch.long)
        if n_shared:
            engine.prefill(shared, torch.ones_like(shared, dtype=torch.bool))
            engine.select_rows(torch.zeros(len(distinct), dtype=torch.long))
        ids = shared.expand(len(distinct), -1)
        fed = _FedPrompts(engine, distinct, torch.zeros(0), ids, torch.ones_like(ids, dtype=torch.bool))
        rest = [row[n_shared:] for row in distinct]
        layers = self._feed(fed, rest)
        last = torch.tensor([len(ids) - 1 for ids in rest], device=layers[0].device)
        fed.states = _side_by_side([layer[torch.arange(len(rest)), last] for layer in layers])
        return fed

    def _feed_responses(self, fed: _FedPrompts, responses: Sequence[Sequence[int]]) -> list[Tensor]:
        if not any(responses):
            return [fed.states[:0]] * len(responses)
        ids, mask = fed.ids, fed.mask
        layers = self._feed(fed, responses)
        fed.ids, fed.mask = ids, mask  # these slots are dropped before the next responses are fed
        return _window_means(layers, list(map(len, responses)))

    def _feed(self, fed: _FedPrompts, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Feed further ids of each row, and return their states (rows, T, d) after each layer."""
        n_rows, n_new, n_before = len(rows), max(map(len, rows)), fed.ids.shape[1]
        ids, real = torch.zeros(n_rows, n_new, dtype=torch.long), torch.zeros(n_rows, n_new, dtype=torch.bool)
        for row, new in enumerate(rows):
            ids[row, : len(new)], real[row, : len(new)] = torch.tensor(new, dtype=torch.long), True
        fed.ids, before, fed.mask = torch.cat([fed.ids, ids], dim=1), fed.mask, torch.cat([fed.mask, real], dim=1)
        positions = (fed.mask.long().cumsum(-1) - 1).clamp_min(0)
        chain = torch.ones(n_new, n_new, dtype=torch.bool).tril()
        visible = torch.cat([before[:, None].expand(-1, n_new, n_before), chain.expand(n_rows, -1, -1)], dim=-1)
        with captured_states(self._model) as states:
            fed.engine.feed(fed.ids, positions, visible, real)
        return states

    def _read_alone(self, ids: Sequence[int], n_prompt: int) -> States:
        with captured_states(self._model) as states, torch.no_grad():
            self._model(input_ids=torch.tensor([ids], device=input_device(self._model)), use_cache=False)
        request = _side_by_side([layer[:, n_prompt - 1] for layer in states])[0]
        return States(request, _window_means([layer[:, n_prompt:] for layer in states], [len(ids) - n_prompt])[0])


@contextmanager
def captured_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect the hidden states of the next forward: those (B, T, d) from the middle layer on, the last one included.

    Another thread may run the same model meanwhile: its forwards are left alone.

    Args:
        model: A decoder, with or without adapters.
    """
    states: list[Tensor] = []
    thread = threading.get_ident()

    def ask(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return (args, {**kwargs, "output_hidden_states": True}) if threading.get_ident() == thread else None

    def collect(module: Any, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            states[:] = output.hidden_states[len(output.hidden_states) // 2 :]

    handles = [model.register_forward_pre_hook(ask, with_kwargs=True), model.register_forward_hook(collect)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _side_by_side(layers: Sequence[Tensor]) -> Tensor:
    """States (..., d) of each layer as one vector (..., D), on the CPU and in 32 bits."""
    return torch.cat([layer.float().cpu() for layer in layers], dim=-1)


def _window_means(layers: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """The means (windows, D) over the windows of each row, of states (B, T, d) after each layer; row b has `lengths[b]` ids."""
    windows = [_windows(n) for n in lengths]
    weights = torch.zeros(len(lengths), max(map(len, windows)), layers[0].shape[1])  # (B, windows, T)
    for row, ends in enumerate(windows):
        for n, (start, end) in enumerate(ends):
            weights[row, n, start:end] = 1.0 / (end - start)
    means = _side_by_side([weights.to(layer.device) @ layer.float() for layer in layers])
    return [mean[: len(ends)] for mean, ends in zip(means, windows, strict=True)]


def _windows(n_tokens: int) -> list[tuple[int, int]]:
    """Where the windows of a response start and end; a rest of less than half a window belongs to the last one."""
    if not n_tokens:
        return []
    starts = list(range(0, n_tokens, WINDOW))
    if len(starts) > 1 and n_tokens - starts[-1] < WINDOW // 2:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_tokens], strict=True))
