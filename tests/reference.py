"""Slow, obvious twins of the fast code: dictionaries over strings, and models run from scratch."""

from collections import defaultdict

import torch

from hf_alignbeam.translate import SETTLED_WEIGHT


def translate(anchor, target, anchor_prob, target_prob, rule="bytes"):
    """`VocabularyTranslator` at the end of a text, token by token: a dictionary of target ids, and the mass lost."""
    result, lost = defaultdict(float), 0.0
    for i, p in enumerate(anchor_prob.tolist()):
        data = anchor.tokens[i] if i < len(anchor.tokens) else None
        if i in anchor.eos_ids:
            own = {t: float(target_prob[t]) for t in target.eos_ids}
            for t, weight in own.items():
                result[t] += p * (weight / sum(own.values()) if sum(own.values()) else 1 / len(own))
            continue
        ids = target.encode(data) if data else ()
        if data in target.by_bytes:
            ids = (target.by_bytes[data],)
        keeps = {"bytes": bool(ids), "first": bool(ids), "drop": len(ids) == 1, "exact": data in target.by_bytes}
        if not data or not keeps[rule]:
            lost += p
            continue
        ends = {ids[0]}
        if rule == "bytes":
            for t, longer in enumerate(target.tokens):
                if longer and longer not in anchor.by_bytes and t not in target.eos_ids:
                    path = anchor.encode(longer)
                    if len(path) > 1 and path[0] == i:
                        ends.add(t)
        weights = {t: float(target_prob[t]) + (SETTLED_WEIGHT if t == ids[0] else 0.0) for t in ends}
        for t, weight in weights.items():
            result[t] += p * weight / sum(weights.values())
    return dict(result), lost


@torch.no_grad()
def next_logp(model, ids):
    """What a model says after `ids`, without a cache: (vocabulary,) log-probabilities."""
    return model(torch.tensor([list(ids)])).logits[0, -1].float().log_softmax(-1)
