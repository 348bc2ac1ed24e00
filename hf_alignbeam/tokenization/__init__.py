"""Token ids as byte strings.

* `backends`: Reads a tokenizer: the bytes of its tokens, its pieces' names, its encoder.
* `mistral_backends`: The same of mistral-common's tokenizers.
* `vocabulary`: A tokenizer as byte strings with ids: ids to bytes, and bytes to ids.
* `losses`: The texts that a tokenizer cannot write or does not keep.
* `seen_text`: What a user sees of some tokens.
"""

from hf_alignbeam.tokenization.backends import OTHER_BACKENDS
from hf_alignbeam.tokenization.mistral_backends import read_mistral

OTHER_BACKENDS[:] = [read_mistral]
