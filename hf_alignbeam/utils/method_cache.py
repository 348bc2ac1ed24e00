"""A method's results kept with its object, and gone with it: `functools.lru_cache` on a method keeps the objects alive."""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])

_PREFIX = "_results_of_"


def cached_method(maxsize: int) -> Callable[[Method], Method]:
    """Keep the last results of a method, at most `maxsize` for each object; its arguments must be hashable."""

    def decorate(method: Method) -> Method:
        name = _PREFIX + method.__name__

        @wraps(method)
        def cached(self: Any, *args: Any, **kwargs: Any) -> Any:
            results = self.__dict__.get(name)
            if results is None:
                results = self.__dict__[name] = lru_cache(maxsize)(partial(method, self))
            return results(*args, **kwargs)

        return cast(Method, cached)

    return decorate


def forget(owner: object) -> None:
    """Drop everything that an object's cached methods have kept (a copy must not answer for the object it was made of)."""
    for name in [name for name in vars(owner) if name.startswith(_PREFIX)]:
        del vars(owner)[name]
