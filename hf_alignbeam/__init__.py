"""Makes a fine-tuned language model refuse, at generation time, what a safe model would refuse."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_alignbeam.utils.method_cache import KEEPERS
from hf_alignbeam.versions import check_versions

if TYPE_CHECKING:
    from hf_alignbeam.decoding.strategy import AlignBeam
    from hf_alignbeam.embedding_search.steered_prompts import SteeredPrompts
    from hf_alignbeam.embedding_search.steerer import EmbeddingSteerer
    from hf_alignbeam.judges.base import CachedJudge
    from hf_alignbeam.judges.calibration import CalibratedJudge
    from hf_alignbeam.judges.classifier_judge import ClassifierJudge
    from hf_alignbeam.judges.generating_judge import GeneratingJudge
    from hf_alignbeam.judges.llm_judge import LLMJudge
    from hf_alignbeam.judges.plausibility import PlausibleAnswer
    from hf_alignbeam.judges.probes.probe_judge import ProbeJudge
    from hf_alignbeam.judges.profile import GuardProfile
    from hf_alignbeam.steering.processor import AnchorLogitsProcessor
    from hf_alignbeam.tokenization.vocabulary import token_bytes
    from hf_alignbeam.translation.translator import VocabularyTranslator

__all__ = [
    "AlignBeam",
    "AnchorLogitsProcessor",
    "CachedJudge",
    "CalibratedJudge",
    "ClassifierJudge",
    "EmbeddingSteerer",
    "GeneratingJudge",
    "GuardProfile",
    "LLMJudge",
    "PlausibleAnswer",
    "ProbeJudge",
    "SteeredPrompts",
    "VocabularyTranslator",
    "token_bytes",
]

check_versions()

#: The module of each public name, imported at first use: `alignbeam --help` need not wait for torch.
_MODULES = {
    "AlignBeam": "decoding.strategy",
    "AnchorLogitsProcessor": "steering.processor",
    "CachedJudge": "judges.base",
    "CalibratedJudge": "judges.calibration",
    "ClassifierJudge": "judges.classifier_judge",
    "EmbeddingSteerer": "embedding_search.steerer",
    "GeneratingJudge": "judges.generating_judge",
    "GuardProfile": "judges.profile",
    "LLMJudge": "judges.llm_judge",
    "PlausibleAnswer": "judges.plausibility",
    "ProbeJudge": "judges.probes.probe_judge",
    "SteeredPrompts": "embedding_search.steered_prompts",
    "VocabularyTranslator": "translation.translator",
    "token_bytes": "tokenization.vocabulary",
}


def _keep(function: Any, *args: Any) -> Any:
    """Answer in place of a function, from what earlier guards and processes have computed."""
    return import_module("hf_alignbeam.build_cache.keepers").answer(function, *args)


KEEPERS.append(_keep)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
