"""What differs between the releases of transformers that are supported."""

from transformers import LlamaForCausalLM

from hf_alignbeam.inference.engines import cache_argument

#: The name of the cache, as an argument and in outputs.
CACHE = cache_argument(LlamaForCausalLM)
