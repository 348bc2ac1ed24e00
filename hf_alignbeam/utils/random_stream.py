"""A random stream of its own for a callable that draws from the global generators.

Knows the generators of torch, of Python and of NumPy. Knows nothing of who draws from them.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: The states of all global generators, by the name of each.
States = dict[str, Any]


class RandomStream:
    """Lets a callable draw from the global generators without changing what anybody else draws from them.

    The first block begins with the states that the generators have then, and each later one where the last block ended. After
    each block the generators are as they were before it. Generators belong to the process: what another thread draws during
    a block, or a thread that a block leaves running draws after it, is not kept apart.
    """

    def __init__(self) -> None:
        self._own: States | None = None

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from this stream within a block."""
        others = _states()
        if self._own is not None:
            _set_states(self._own)
        try:
            yield
        finally:
            self._own = _states()
            _set_states(others)


def _states() -> States:
    numpy: Any = sys.modules.get("numpy")  # no dependency of ours: where it is not imported, nothing draws from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "python": random.getstate(),
        "numpy": numpy.random.get_state() if numpy is not None else None,
    }


def _set_states(states: States) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state_all(states["cuda"])
    if states["mps"] is not None:
        torch.mps.set_rng_state(states["mps"])
    random.setstate(states["python"])
    if states["numpy"] is not None:
        sys.modules["numpy"].random.set_state(states["numpy"])
