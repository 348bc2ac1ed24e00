"""Which results are kept, for how long, and under which digest.

Tables live as long as the tokenizer that they belong to, and longer on disk. Knows the functions by name, not how they compute.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.build_cache.contents import digest, is_published, model_digest, tokenizer_digest
from hf_alignbeam.build_cache.disk import kept_on_disk
from hf_alignbeam.inference.engines import PACKED, KeyValueEngine
from hf_alignbeam.judges.probes.known_probes import FIT, KnownProbes
from hf_alignbeam.judges.probes.linear_probe import LinearProbe
from hf_alignbeam.tokenization.backends import FastBackend, read_backend

#: How many anchors and rules the tables of one target are kept for.
N_TRANSLATORS = 4

#: The back end of each tokenizer's contents, and the digest of each back end.
_BACKENDS: WeakValueDictionary[str, FastBackend] = WeakValueDictionary()
_DIGESTS: WeakKeyDictionary[FastBackend, str] = WeakKeyDictionary()

#: The engines that run a model from a cache, by name; and by a model's state the name of its own.
_ENGINES: list[type[KeyValueEngine]] = [KeyValueEngine, *PACKED]
_CACHED_ENGINES = {engine.__name__: engine for engine in _ENGINES}
_CACHING: WeakKeyDictionary[PreTrainedModel, dict[str, str]] = WeakKeyDictionary()


def answer(function: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a function or class, kept or new."""
    return _KEEPERS[function.__name__](function, *args)


def _backend(build: Callable[..., FastBackend], tokenizer: Any) -> FastBackend:
    """Equal tokenizers share a back end."""
    key = tokenizer_digest(tokenizer)
    backend = _BACKENDS.get(key)
    if backend is None:
        new = []

        def names() -> list[str | None]:
            new.append(build(tokenizer))
            return [None if token is None else token.decode("latin-1") for token in new[0].tokens]

        kept = kept_on_disk("tokens", key, names)
        backend = new[0] if new else build(tokenizer, [None if name is None else name.encode("latin-1") for name in kept])
        backend = _BACKENDS.setdefault(key, backend)
        _DIGESTS[backend] = key
    return backend


def _translator(
    build: Callable[..., Any],
    anchor_tokenizer: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    rule: str,
    anchor_eos_ids: Iterable[int],
    eos_ids: Iterable[int],
) -> Any:
    """Guards for equal tokenizers share a translator. It holds the target's back end, which holds it: both are freed together."""
    backends = [read_backend(each) for each in (anchor_tokenizer, tokenizer)]
    digests = [_DIGESTS.get(backend) for backend in backends]
    if None in digests:
        return build(anchor_tokenizer, tokenizer, rule, anchor_eos_ids, eos_ids)
    known = vars(backends[1]).setdefault("translators", {})
    key = digest(*digests, rule, sorted(anchor_eos_ids), sorted(eos_ids))
    if key not in known:
        for oldest in list(known)[: max(0, 1 + len(known) - N_TRANSLATORS)]:
            known.pop(oldest, None)
        known[key] = build(anchor_tokenizer, tokenizer, rule, anchor_eos_ids, eos_ids)
    return known[key]


def _links(compute: Callable[..., Any], translator: Any, pending: bytes, target_only_prefix: bytes) -> Any:
    """Those of whole vocabularies are kept on disk; of pending bytes there are too many."""
    vocabularies = translator.anchor, translator.target
    digests = [_DIGESTS.get(vocabulary.backend) for vocabulary in vocabularies]
    if pending or None in digests:
        return compute(translator, pending, target_only_prefix)
    key = digest(*digests, *(vocabulary.eos_ids for vocabulary in vocabularies), translator.rule, target_only_prefix)
    return _nested(kept_on_disk("links", key, lambda: _flat(*compute(translator, pending, target_only_prefix))))


def _flat(next_tokens: list[int], extensions: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[int]]:
    """Links as few lists: as many as a table has paths would set off collections of garbage wherever they are read."""
    ids = [i for path, tokens in extensions for i in (*path, *tokens)]
    return [next_tokens, [len(path) for path, _ in extensions], [len(tokens) for _, tokens in extensions], ids]


def _nested(flat: list[list[int]]) -> list[Any]:
    """The links that `_flat` was given."""
    next_tokens, n_path, n_tokens, ids = flat
    extensions, end = [], 0
    for n, m in zip(n_path, n_tokens, strict=True):
        start, end = end, end + n + m
        extensions.append((tuple(ids[start : start + n]), ids[start + n : end]))
    return [next_tokens, extensions]


def _engine(choose: Callable[..., Any], model: PreTrainedModel, tokens: Sequence[bytes | None], scope: Any) -> Any:
    """How a model may run from a cache is kept; that it may not is tried again, as it may have been short of memory."""
    key, caching = digest(model_digest(model), scope is nullcontext), _CACHING.setdefault(model, {})
    if key not in caching:
        chosen = []

        def name() -> str | None:
            chosen.append(choose(model, tokens, scope))
            return chosen[0].__name__ if chosen[0] in _CACHED_ENGINES.values() else None

        known = kept_on_disk("engine", key, name) if is_published(model) else name()
        if known is None or known not in _CACHED_ENGINES:
            return chosen[0] if chosen else choose(model, tokens, scope)
        caching[key] = known
    return _CACHED_ENGINES[caching[key]]


def _probes(fit: Callable[..., KnownProbes], model: PreTrainedModel, read: Any, *known: Any) -> KnownProbes:
    """The probes of a model as it was published are kept on disk."""
    if not is_published(model):
        return fit(model, read, *known)

    def flat() -> list[Any]:
        request, response, separation = fit(model, read, *known)
        return [request.weight.tolist(), request.bias, response.weight.tolist(), response.bias, separation]

    key = digest(model_digest(model), FIT, *known)
    weight, bias, other_weight, other_bias, separation = kept_on_disk("probes", key, flat)
    request, response = (
        LinearProbe(torch.tensor(vector, dtype=torch.float64), number)
        for vector, number in ((weight, bias), (other_weight, other_bias))
    )
    return KnownProbes(request, response, separation)


_KEEPERS: dict[str, Callable[..., Any]] = {
    "FastBackend": _backend,
    "VocabularyTranslator": _translator,
    "links": _links,
    "choose_engine": _engine,
    "fit_probes": _probes,
}
