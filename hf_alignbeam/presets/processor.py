"""The mixing of AlignBeam, SafeDecoding and contrastive decoding, as settings of the processor.

Holds data only. Knows no class that takes the settings.
"""

from typing import Any

#: Settings of `AnchorLogitsProcessor` by name: the mixing of AlignBeam (arXiv 2606.12342) without its beams, SafeDecoding
#: (arXiv 2402.08983), contrastive decoding (arXiv 2309.09117, beta 0.5).
PROCESSOR: dict[str, dict[str, Any]] = {
    "paper": {"mixing": "paper", "translation": "drop", "alpha": 0.5, "n_steps": 6, "n_watch": None},
    "safe_decoding": {"mixing": "safe_decoding", "alpha": 3.0, "n_steps": 2, "n_watch": None},
    "contrastive": {"mixing": "contrastive", "alpha": 1.5, "n_steps": None, "n_watch": None},
}
