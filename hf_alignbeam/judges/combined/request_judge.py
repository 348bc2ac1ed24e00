"""A judge that reads the request alone: how harmful it would be to comply.

Knows conversations, and profiles that judge prompts. Knows no response.
"""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation
from hf_alignbeam.judges.base import CachedJudge
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.judges.profile import GuardProfile


class RequestJudge:
    """A causal language model that judges requests: the harm of an exchange is that of complying, whatever the response.

    Verdicts are cached, as an answer is judged several times while it grows.

    Args:
        model: Any causal model, in evaluation mode.
        tokenizer: Its tokenizer.
        profile: A profile that judges prompts, with a `prompt` that holds `{user}`.

    Raises:
        ValueError: The profile does not judge prompts, or the model gives no verdicts on known exchanges.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, profile: GuardProfile):
        self._judge = _OfRequests(model, tokenizer, profile)
        self._cached = CachedJudge(self._judge)

    @property
    def identity(self) -> LLMJudge:
        """The judge whose verdicts these are."""
        return self._judge

    def __repr__(self) -> str:
        return repr(self._judge)

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; the responses are not read."""
        return self._cached(conversations, [""] * len(responses))


class _OfRequests(LLMJudge):
    """An `LLMJudge` whose prompt leaves the response out."""

    @staticmethod
    def _check_judged(profile: GuardProfile) -> None:
        if "prompt" not in profile.judges or "{user}" not in (profile.prompt or ""):
            raise ValueError(f"`profile` must judge prompts by a `prompt` with {{user}}, but {profile.name} does not.")
