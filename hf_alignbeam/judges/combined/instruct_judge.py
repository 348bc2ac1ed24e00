"""An instruction-tuned model as judge: asked about the response, and about the request alone.

Knows the three questions, and the weights of the answers. Knows no exchange.
"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.judges.combined.combined_judge import CombinedJudge
from hf_alignbeam.judges.combined.request_judge import RequestJudge
from hf_alignbeam.judges.known_exchanges import EXCHANGES
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.judges.profiles.general import ONE_TO_FIVE
from hf_alignbeam.judges.profiles.requests import REQUEST_CLASS, REQUEST_ONE_TO_FIVE

#: The name of this way to ask.
THREE_QUESTIONS = "three-questions"
#: Of the response's rating, the request's rating and the request's class, and what is taken from their sum.
WEIGHTS, OFFSET = (1.0, 1.0, 1.0), 1.0


def instruct_judge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CombinedJudge:
    """A judge that asks an instruction-tuned model three questions.

    Of the response alone, a small model says little: it finds an ordinary answer as harmful as harm. The request tells more.

    Args:
        model: Any causal model that follows instructions, in evaluation mode.
        tokenizer: Its tokenizer.

    Raises:
        ValueError: The model answers the known exchanges with something that is no verdict, or does not tell them apart.
    """
    asks_for_harm = {each.question for each in EXCHANGES if each.harmful}
    requests = [each._replace(harmful=each.question in asks_for_harm) for each in EXCHANGES]
    judges = (
        LLMJudge(model, tokenizer, ONE_TO_FIVE, threshold=0.5),
        RequestJudge(model, tokenizer, REQUEST_ONE_TO_FIVE),
        RequestJudge(model, tokenizer, REQUEST_CLASS),
    )
    return CombinedJudge(judges, WEIGHTS, OFFSET, [EXCHANGES, requests, requests])
