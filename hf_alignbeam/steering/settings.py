"""SteeringSettings: how an anchor is mixed in, for the logits processor and the decoding strategy alike.

Knows values, their defaults and their ranges. Knows no model.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hf_alignbeam.chat.conversations import Conversation
from hf_alignbeam.chat.templates import check_template
from hf_alignbeam.steering.mixing import MixingRule, check_mixing
from hf_alignbeam.translation.translator import TranslationRule, VocabularyTranslator
from hf_alignbeam.utils.checks import check_whole_number, refuse_none


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
        off, always = "Use 0 to switch it off.", "Use None to steer every answer for `n_steps`."
        for name, least, hint in (("n_steps", 0, off), ("n_lookahead", 0, off), ("n_watch", 1, always)):
            if (number := getattr(self, name)) is not None:
                check_whole_number(name, number, least, hint)

    @property
    def is_off(self) -> bool:
        """Whether these settings leave the target's scores unchanged."""
        return self.alpha == 0.0 or self.n_steps == 0
