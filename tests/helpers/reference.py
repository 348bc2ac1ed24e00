"""Slow, obvious twins of the fast code: dictionaries of strings, and models run from scratch."""

from collections import defaultdict

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from hf_alignbeam.inference.engines import cache_argument
from hf_alignbeam.translation.translator import AS_IS_WEIGHT


def translate(anchor, target, anchor_prob, target_prob, rule="bytes"):
    """`VocabularyTranslator` without pending bytes, token by token: a dictionary by target id, and the mass lost."""
    result, lost = defaultdict(float), 0.0
    for i, p in enumerate(anchor_prob.tolist()):
        data = anchor.tokens[i] if i < len(anchor.tokens) else None
        if i in anchor.eos_ids:
            weights = {t: float(target_prob[t]) for t in target.eos_ids}
            total = sum(weights.values())
            for t, weight in weights.items():
                result[t] += p * (weight / total if total else 1 / len(weights))
            continue
        ids = target.encode(data) if data else ()
        if data and rule in ("drop", "first"):
            ids = target.own_ids(data) or ids
        if data in target.by_bytes and rule not in ("drop", "first"):
            ids = (target.by_bytes[data],)
        keeps = {"bytes": bool(ids), "first": bool(ids), "drop": len(ids) == 1, "exact": data in target.by_bytes}
        if not data or not keeps[rule]:
            lost += p
            continue
        candidates = {ids[0]}
        if rule == "bytes":
            for t, longer in enumerate(target.tokens):
                if longer and longer not in anchor.by_bytes and t not in target.eos_ids:
                    path = anchor.encode(longer)
                    if len(path) > 1 and path[0] == i:
                        candidates.add(t)
        weights = {t: float(target_prob[t]) for t in candidates}
        weights[ids[0]] += AS_IS_WEIGHT * sum(weights.values()) + 1e-30
        for t, weight in weights.items():
            result[t] += p * weight / sum(weights.values())
    return dict(result), lost


@torch.no_grad()
def next_logp(model, ids):
    """A model's next-token log-probabilities (V,) after `ids`, without a cache."""
    return model(torch.tensor([list(ids)])).logits[0, -1].float().log_softmax(-1)


class TextAnchor(torch.nn.Module):
    """A model that writes one of a few texts, each with its own weight, in the canonical tokens of its vocabulary.

    The distribution over texts does not depend on the vocabulary, so neither may a translation of it. The model keeps the
    ids it is fed in the cache it is given, and reads them by mask and positions alone.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, vocabulary, weights):
        super().__init__()
        self._embeddings = torch.nn.Embedding(1, 1)
        self.config = PretrainedConfig(max_position_embeddings=512)
        self.config._attn_implementation = "sdpa"
        self._size, self._end = len(vocabulary), vocabulary.eos_ids[0]
        self._texts = [((*vocabulary.encode(text), self._end), weight) for text, weight in weights.items()]

    def get_input_embeddings(self):
        return self._embeddings

    def forward(self, input_ids, past_key_values, attention_mask=None, position_ids=None, **_):
        n_rows, n_new = input_ids.shape
        if position_ids is None:
            position_ids = past_key_values.get_seq_length() + torch.arange(n_new).expand(n_rows, -1)
        ids, positions = (
            cached[:, 0, :, 0].long()
            for cached in past_key_values.update(input_ids[:, None, :, None].float(), position_ids[:, None, :, None].float(), 0)
        )
        n_slots = ids.shape[-1]
        seen = torch.ones(n_rows, n_new, n_slots, dtype=torch.bool).tril(n_slots - n_new)
        if attention_mask is not None:
            seen = attention_mask[:, 0] == 0 if attention_mask.dim() == 4 else seen & attention_mask[:, None].bool()
        logits = torch.stack(
            [torch.stack([self._next(ids[b][seen[b, n]], positions[b][seen[b, n]]) for n in range(n_new)]) for b in range(n_rows)]
        )
        return CausalLMOutput(logits=logits)

    def _next(self, ids, positions):
        written = tuple(ids[positions.argsort()].tolist())[1:]  # after one token of prompt
        prob = torch.full((self._size,), 1e-12)
        for text, weight in self._texts:
            if text[: len(written)] == written and len(text) > len(written):
                prob[text[len(written)]] += weight
        return (prob / prob.sum()).log()


def exact_over_texts(target, weights, written, target_only_prefix=b""):
    """(V,) the exact translation of an anchor that writes one of a few texts: the weights of their canonical tokens."""
    prob = torch.zeros(len(target))
    for text, weight in weights.items():
        ids = (*target.encode(target_only_prefix + text), target.eos_ids[0])
        if ids[: len(written)] == tuple(written) and len(ids) > len(written):
            prob[ids[len(written)]] += weight
    return prob / prob.sum()


@torch.no_grad()
def sampled_translations(model, prompt_ids, anchor, target, written, target_only_prefix, n_kept, seed=0, n_tokens=12):
    """Exact translations (n, V) by sampling: for each of `written`, the next tokens of the answers that begin with it."""
    generator = torch.Generator().manual_seed(seed)
    prob, n_rows, name = torch.zeros(len(written), len(target)), 500, cache_argument(model)
    while prob.sum(-1).min() < n_kept:
        cache, drawn = DynamicCache(), []
        logits = model(torch.tensor([list(prompt_ids)]), logits_to_keep=1, **{name: cache}).logits.expand(n_rows, -1, -1)
        cache.batch_repeat_interleave(n_rows)
        for _ in range(n_tokens):
            drawn.append(torch.multinomial(logits[:, -1].softmax(-1), 1, generator=generator))
            logits = model(drawn[-1], **{name: cache}).logits
        for row in torch.cat(drawn, dim=-1).tolist():
            ends = [n for n, i in enumerate(row) if i in anchor.eos_ids]
            answer = target.encode(target_only_prefix + anchor.decode(row[: ends[0]] if ends else row))
            answer = (*answer, target.eos_ids[0]) if ends else answer
            for counts, prefix in zip(prob, written, strict=True):
                if answer[: len(prefix)] == tuple(prefix) and len(answer) > len(prefix):
                    counts[answer[len(prefix)]] += 1
    return prob / prob.sum(-1, keepdim=True)


def tsa(model, embeds, answered, judged, seed, mu=0.1, eta=1.3, n_probes=8, cone=0.2, threshold=0.1, n_rounds=10):
    """Test-Time Safety Alignment (arXiv 2604.26167, algorithm 1) on one prompt, one probe after the other.

    Where no probe differs from the prompt, there is no gradient: the prompt stays, and its answer is not judged again.

    Returns:
        The answer that passes (None where none does), the harm of each judged answer, and the number of answers generated.
    """
    generator = torch.Generator().manual_seed(seed)
    centre, calls, n_generated = embeds.clone(), [judged(answered(embeds))], 1
    base, moved = calls[0], False
    for _ in range(n_rounds):
        noise = [torch.randn(embeds.shape, generator=generator) for _ in range(n_probes)]
        n_generated += n_probes + moved
        if moved:
            text = answered(centre)
            calls.append(base := judged(text))
            if base <= threshold:
                return text, calls, n_generated
        gradient = torch.zeros_like(embeds)
        for u in noise:
            calls.append(judged(answered(centre + mu * u)))
            gradient += (calls[-1] - base) / mu * u / n_probes
        moved = moved or bool(gradient.any())
        for t, row in enumerate(gradient):
            if row.norm() > 0:
                centre[t] -= eta * row / row.norm()
            cosine = float(centre[t] @ embeds[t] / centre[t].norm() / embeds[t].norm())
            if cosine < cone:
                axis = embeds[t] / embeds[t].norm()
                across = centre[t] - (centre[t] @ axis) * axis
                centre[t] = centre[t].norm() * (cone * axis + (1 - cone**2) ** 0.5 * across / across.norm())
    return None, calls, n_generated


def safe_decoding_by_loop(target: list[float], anchor: list[float], alpha: float, n_common: int) -> list[float]:
    """SafeDecoding as its authors wrote it: the two top-k sets grow until they share enough."""
    by_target = sorted(range(len(target)), key=lambda i: -target[i])
    by_anchor = sorted(range(len(anchor)), key=lambda i: -anchor[i])
    for k in range(n_common, len(target) + 1):
        common = set(by_target[:k]) & set(by_anchor[:k])
        if len(common) >= n_common:
            break
    else:
        common = set(range(len(target)))
    weights = [
        max(p + alpha * (q - p), 1e-8) if i in common else 0.0 for i, (p, q) in enumerate(zip(target, anchor, strict=True))
    ]
    return [weight / sum(weights) for weight in weights]
