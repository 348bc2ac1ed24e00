"""The `generate` of a Hub folder that holds an `EmbeddingSteerer`."""

from typing import Any

import torch
from transformers import (
    PreTrainedModel,
)

from hf_alignbeam.chat.conversations import as_message_lists_or_none
from hf_alignbeam.chat.prompt_reader import PromptReader
from hf_alignbeam.embedding_search.steerer import EmbeddingSteerer
from hf_alignbeam.hub.arguments import (
    JUDGING,
    for_any_rows,
    preset_settings,
    split_settings,
)
from hf_alignbeam.hub.judge_loading import load_accept, load_named_judge
from hf_alignbeam.hub.model_loading import build_once, settings_key, tokenizer_of
from hf_alignbeam.presets.published import TSA


@torch.no_grad()
def embedding_steerer(
    inputs: Any = None, *, model: PreTrainedModel, judge: Any, accept: Any = None, tokenizer: Any = None, **kwargs: Any
) -> Any:
    """`generate` that searches embeddings for prompts whose answer a judge does not pass, with an `EmbeddingSteerer`.

    Args:
        inputs: (B, length) prompt ids; or `input_ids`, by name.
        model: The target.
        judge: As in `alignbeam`.
        accept: The safe model of a `PlausibleAnswer`: a Hub id, a folder, a loaded model (with `anchor_tokenizer`); or any
            callable. None: what the judge passes is given.
        tokenizer: The target's; by default the one that lies beside it.
        kwargs: What `generate` takes, its streamer too; what `EmbeddingSteerer` takes, by name; `preset="tsa"`;
            `conversations` and `template` as in `AnchorLogitsProcessor`; `accept_revision`, `judge_revision`, `judge_labels`,
            `judge_template`.
    """
    tokenizer = tokenizer_of(model, tokenizer)
    settings, rest = split_settings(kwargs, EmbeddingSteerer)
    settings = {**preset_settings(rest.pop("preset", None), {"tsa": TSA}), **settings}
    named = {name: rest.pop(name, None) for name in (*JUDGING, "anchor_tokenizer", "accept_revision")}
    template, conversations = rest.pop("template", None), rest.pop("conversations", None)
    prompts = build_once(tokenizer, ("prompts", *settings_key({"template": template})), lambda: PromptReader(tokenizer, template))
    ids = rest.pop("input_ids", None) if inputs is None else inputs
    if ids is None or rest.get("inputs_embeds") is not None:
        raise ValueError("`input_ids` must be given, for it is their embeddings that are searched, got none or `inputs_embeds`.")
    judging = load_named_judge(judge, named, model)
    accepting = load_accept(accept, named["accept_revision"], model, named["anchor_tokenizer"])

    def build() -> EmbeddingSteerer:
        return EmbeddingSteerer(model, tokenizer, judging, accepting, **settings)

    key = ("embedding_steerer", id(judging), id(accepting), id(tokenizer), *settings_key(settings))
    steerer = build_once(model, key, build)
    asked, _ = prompts.read(ids, as_message_lists_or_none(conversations))
    return steerer.respond(ids, asked, **{**rest, "stopping_criteria": for_any_rows(rest.get("stopping_criteria"))})
