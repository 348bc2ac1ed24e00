"""SteeringSettings: how an anchor is mixed in, for the logits processor and the decoding strategy alike.

Knows values, their defaults and their ranges. Knows no model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

from hf_alignbeam.chat.conversations import Conversation
from hf_alignbeam.chat.templates import check_template
from hf_alignbeam.steering.mixing import MixingRule, check_mixing
from hf_alignbeam.translation.translator import TranslationRule, VocabularyTranslator
from hf_alignbeam.utils.checks import refuse_none


@dataclass(frozen=True)
class SteeringSettings:
    """How an anchor is mixed in. `AnchorLogitsProcessor` documents the fields; their defaults are defined only here.

    Raises:
        ValueError: A value is out of its range.
    """

    alpha: float = 0.7
    n_steps: int | None = 20
    n_watch: int | None = 4
    mixing: MixingRule = "log_linear"
    translation: TranslationRule | VocabularyTranslator = "bytes"
    n_lookahead: int = 4  # chosen by the distance to the exact translation
    template: str | Callable[[str], Conversation] | None = None

    def __post_init__(self) -> None:
        refuse_none(vars(self), "n_steps", "n_watch", "template")
        check_mixing(self.mixing, self.alpha)
        check_template(self.template)
        for name, number in (("n_steps", self.n_steps), ("n_lookahead", self.n_lookahead)):
            if number is not None and (not isinstance(number, Integral) or number < 0):
                raise ValueError(f"`{name}` must be at least 0, got {number!r}. Use 0 to switch it off.")
        if self.n_watch is not None and (not isinstance(self.n_watch, Integral) or self.n_watch < 1):
            raise ValueError(f"`n_watch` must be at least 1, got {self.n_watch!r}. Use None to steer every answer for `n_steps`.")

    @property
    def is_off(self) -> bool:
        """Whether these settings leave the target's scores unchanged."""
        return self.alpha == 0.0 or self.n_steps == 0
