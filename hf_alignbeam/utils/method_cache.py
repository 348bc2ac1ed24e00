"""Results that are kept: a method's with its object, freed with it; others by a keeper, where there is one.

Knows functions. `functools.lru_cache` on a method would keep every object alive.
"""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])

RESULTS_PREFIX = "_results_of_"


def cached_method(maxsize: int) -> Callable[[Method], Method]:
    """Cache a method's last results, at most `maxsize` for each object. Its arguments must be hashable."""

    def decorate(method: Method) -> Method:
        name = RESULTS_PREFIX + method.__name__

        @wraps(method)
        def cached(self: Any, *args: Any, **kwargs: Any) -> Any:
            results = self.__dict__.get(name)
            if results is None:
                results = self.__dict__[name] = lru_cache(maxsize)(partial(method, self))
            return results(*args, **kwargs)

        return cast(Method, cached)

    return decorate


#: Answers in place of functions, from what it has kept. The installed package has one, a folder of the Hub has none.
KEEPERS: list[Callable[..., Any]] = []


def kept(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, or return what a call with equal arguments returned."""
    return KEEPERS[-1](function, *args) if KEEPERS else function(*args)
