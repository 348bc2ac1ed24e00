"""The entry of a Hub folder with the strategy embedding-steerer: its `generate`, answered by an `EmbeddingSteerer`.

Knows every argument that this `generate` accepts beside the usual ones.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from hf_alignbeam.chat.conversations import as_message_lists
from hf_alignbeam.chat.prompt_reader import PromptReader
from hf_alignbeam.chat.templates import check_template
from hf_alignbeam.embedding_search.steerer import EmbeddingSteerer
from hf_alignbeam.hub.judge_loading import JUDGE_ARGUMENTS, judge_from_arguments, load_accept
from hf_alignbeam.hub.model_loading import cache_key, get_or_build, tokenizer_for
from hf_alignbeam.hub.shared_arguments import preset_settings, split_settings
from hf_alignbeam.presets.published import TSA
from hf_alignbeam.utils.stopping_criteria import stateless_criteria


@torch.no_grad()
def embedding_steerer(
    inputs: Any = None, *, model: PreTrainedModel, judge: Any, accept: Any = None, tokenizer: Any = None, **kwargs: Any
) -> Any:
    """`generate` that searches for other prompt embeddings where a judge flags the answer, with an `EmbeddingSteerer`.

    Args:
        inputs: (B, length) prompt ids; `input_ids` is the same argument by name.
        model: The target.
        judge: A causal model or a sequence classifier, by Hub id, by folder or loaded (with `judge_tokenizer`); or any
            callable judge.
        accept: The safe model of a `PlausibleAnswer`: a Hub id, a folder, or a loaded model (with `anchor_tokenizer`); or any
            callable check. "refusal": answers that refuse by their words. None: every answer that the judge passes.
        tokenizer: The target's tokenizer; by default the one in the model's own repository or folder.
        kwargs: The arguments of `generate`, `streamer` included; the settings of `EmbeddingSteerer`; `preset="tsa"`;
            `conversations` and `template` as in `AnchorLogitsProcessor`; `accept_revision`, and what is said of the
            judge, as in `JudgeSettings`: `judge_profile`, `judge_rubric`, `judge_template`, `judge_labels`, `judge_threshold`,
            `judge_revision`.
    """
    tokenizer = tokenizer_for(model, tokenizer)
    settings, rest = split_settings(kwargs, EmbeddingSteerer)
    settings = {**preset_settings(rest.pop("preset", None), {"tsa": TSA}), **settings}
    model_arguments = {name: rest.pop(name, None) for name in (*JUDGE_ARGUMENTS, "anchor_tokenizer", "accept_revision")}
    template, conversations = rest.pop("template", None), rest.pop("conversations", None)
    check_template(template)
    EmbeddingSteerer.check_settings(**settings)
    reader_key = ("prompt_reader", *cache_key({"template": template}))
    reader = get_or_build(tokenizer, reader_key, lambda: PromptReader(tokenizer, template))
    ids = rest.pop("input_ids", None) if inputs is None else inputs
    if ids is None or rest.get("inputs_embeds") is not None:
        raise ValueError(
            "`input_ids` must be given, and `inputs_embeds` left out: the search starts from the embeddings of the prompt's ids."
        )
    loaded_judge = judge_from_arguments(judge, model_arguments, model)
    loaded_accept = load_accept(accept, model_arguments["accept_revision"], model, model_arguments["anchor_tokenizer"])

    def build() -> EmbeddingSteerer:
        return EmbeddingSteerer(model, tokenizer, loaded_judge, loaded_accept, **settings)

    key = ("embedding_steerer", id(loaded_judge), id(loaded_accept), id(tokenizer), *cache_key(settings))
    steerer = get_or_build(model, key, build)
    prompts, _ = reader.read(ids, None if conversations is None else as_message_lists(conversations), rest.get("attention_mask"))
    criteria = stateless_criteria(rest.get("stopping_criteria"), len(ids))
    return steerer.respond(ids, prompts, **{**rest, "stopping_criteria": criteria})
