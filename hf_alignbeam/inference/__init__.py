"""Running an anchor or a judge: caches with branches, texts that grow, the base model under an adapter.

* `adapters`: The base model under a target's adapters: the same weights with the adapters turned off.
* `engines`: The forwards of a batch of texts: from a key-value cache, or recomputed each time.
* `packed`: The same of a small batch of short texts as one row.
* `branching_cache`: A batch of contexts whose rows grow, branch and abandon tokens, each token fed once.
* `incremental`: Next-token log-probabilities of texts that grow, without feeding their beginnings again.
* `precise_logits`: The logits of a few tokens in float32, where a model's last layer computes in fewer bits.
"""

from hf_alignbeam.inference.engines import PACKED
from hf_alignbeam.inference.packed import PackedEngine

PACKED[:] = [PackedEngine]
