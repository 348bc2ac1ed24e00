"""Searches of conversations: everything that stays fixed for all searches of one `EmbeddingSteerer`.

Knows how a prompt is rendered, which random stream it gets, and what its answers depend on. Knows no file format and no caller.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.begun_answers import continued, messages_with_prefill
from hf_alignbeam.chat.conversation_key import conversation_key
from hf_alignbeam.chat.conversations import Conversation, Message, ParsedPrompt, as_message_lists, prompt_from_messages
from hf_alignbeam.chat.refusal import check_refusal
from hf_alignbeam.chat.target_prompts import render_target_prompt
from hf_alignbeam.chat.templates import encode_with_one_bos
from hf_alignbeam.embedding_search.batched_generation import BatchedGenerator, ResolvedGeneration
from hf_alignbeam.embedding_search.embeddings import EmbeddedPrompt, Embedder, Positions
from hf_alignbeam.embedding_search.fingerprint import identity
from hf_alignbeam.embedding_search.journal import Journal, to_jsonable
from hf_alignbeam.embedding_search.search_loop import SearchLoop
from hf_alignbeam.embedding_search.search_state import AcceptanceTest, PromptSearch, SearchLimits
from hf_alignbeam.embedding_search.steered_prompts import SteeredPrompt
from hf_alignbeam.embedding_search.zeroth_order import ProbeSampler, SearchConfig
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.failsafe import JudgeCalls
from hf_alignbeam.tokenization.seen_text import seen_bytes
from hf_alignbeam.tokenization.vocabulary import token_bytes
from hf_alignbeam.utils.checks import is_number, is_whole_number, refuse_none
from hf_alignbeam.utils.timed_calls import TimedCalls, check_timeout

#: Prompts that are searched together. Their results are reported before the next ones start.
N_TOGETHER = 64


@dataclass(frozen=True)
class SearchSettings:
    """The settings of all searches, checked: the arguments of `EmbeddingSteerer`."""

    config: SearchConfig
    limits: SearchLimits
    positions: Positions
    probe_temperature: float
    max_batch_tokens: int
    judge_timeout: float | None
    seed: int

    def __post_init__(self) -> None:
        refuse_none(vars(self), "judge_timeout")
        check_timeout(self.judge_timeout, "judge_timeout")
        if self.positions not in get_args(Positions):
            raise ValueError(f'`positions` must be "all" or "user", got {self.positions!r}.')
        if not is_number(self.probe_temperature) or not 0.0 <= self.probe_temperature < float("inf"):
            raise ValueError(f"`probe_temperature` must be at least 0, got {self.probe_temperature!r}. Use 0 for greedy answers.")
        if not is_whole_number(self.max_batch_tokens) or self.max_batch_tokens < 1:
            raise ValueError(f"`max_batch_tokens` must hold one prompt and its answer, got {self.max_batch_tokens!r}. Use 16384.")
        if not is_whole_number(self.seed):
            raise ValueError(f"`seed` must be a whole number, got {self.seed!r}. Leave it out for 0.")
        if not self.limits.first and not self.config.moves_center:
            raise ValueError("`first` must be True if the search's center does not move, got False. Or set `eta` above 0.")


def checked_settings(arguments: Mapping[str, Any]) -> SearchSettings:
    """Check the settings among the arguments of `EmbeddingSteerer`, for which no model is needed.

    Args:
        arguments: Its arguments by name, with the defaults of those that are left out.

    Raises:
        ValueError: A value is out of its range.
    """
    check_refusal(arguments["refusal"])
    kinds = arguments["kinds"]
    refuse_none({"kinds": kinds})
    known = {**arguments, "kinds": tuple(kinds) if isinstance(kinds, Sequence) else (kinds,)}
    known["config"] = SearchConfig(**{field.name: known[field.name] for field in fields(SearchConfig)})
    known["limits"] = SearchLimits(**{field.name: known[field.name] for field in fields(SearchLimits)})
    return SearchSettings(**{field.name: known[field.name] for field in fields(SearchSettings)})


def conversations_by_key(conversations: Sequence[Conversation]) -> dict[str, list[Message]]:
    """Conversations by the keys that name them in a journal, without duplicates."""
    return {conversation_key(messages): messages for messages in as_message_lists(conversations)}


class PromptSearcher:
    """Runs searches.

    Args:
        model: The target.
        tokenizer: The target's tokenizer.
        judge: The judge.
        accept: Decides which answers may be given; None to accept all.
        settings: The settings.

    Raises:
        ValueError: The model does not generate from embeddings.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        judge: Judge,
        accept: AcceptanceTest | None,
        settings: SearchSettings,
    ):
        if not isinstance(model, torch.nn.Module):
            raise ValueError(f"`model` must be a loaded model, got {model!r}. Load it with `from_pretrained`.")
        for name, function in (("judge", judge), ("accept", accept)):
            if not callable(function) and not (name == "accept" and function is None):
                raise ValueError(f"`{name}` must be callable with conversations and responses, got {function!r}.")
        self._timed = TimedCalls(settings.judge_timeout, "judge_timeout")  # first: it stops a deep copy before a model is copied
        self.settings = settings
        self.pieces = token_bytes(tokenizer)
        self._embedder = Embedder(model, tokenizer, self.pieces, settings.positions)
        self._model = model
        self._tokenizer = tokenizer
        self._judge = judge
        self._accept = accept

    def identities(self) -> dict[str, str]:
        """Who gives the verdicts in a journal: the judge and `accept`, as they are now."""
        return {"judge": identity(self._judge), "accept": identity(self._accept)}

    def recorded_settings(self, generate_kwargs: Mapping[str, Any], describe: Callable[[Any], str]) -> dict[str, Any]:
        """All settings that the answers depend on, as JSON can hold them; `describe` is called for objects among them."""
        settings = {
            **vars(self.settings.config),
            **vars(self.settings.limits),
            "dtype": str(self._model.dtype),
            "positions": self.settings.positions,
            "probe_temperature": self.settings.probe_temperature,
            "seed": self.settings.seed,
            "generate": generate_kwargs,
            "generation_config": self._model.generation_config,
        }
        return {name: to_jsonable(value, describe) for name, value in settings.items()}

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The rendered prompt of a conversation."""
        return encode_with_one_bos(self._tokenizer, render_target_prompt(self._tokenizer, messages))

    def embed(self, messages: list[Message]) -> EmbeddedPrompt:
        """The model's own embeddings of a conversation."""
        return self._embedder.embed(self.prompt_ids(messages), messages)

    def search(
        self,
        conversations: Mapping[str, list[Message]],
        generation: ResolvedGeneration,
        journal: Journal,
        add: Callable[[SteeredPrompt], None],
    ) -> None:
        """Search conversations.

        Args:
            conversations: Each under its `conversation_key`.
            generation: How answers are generated.
            journal: Gets every answer and verdict.
            add: Called with each result, also with those that are complete when an error is raised.

        Raises:
            JudgeError: There is no verdict.
            ValueError: A prompt with its answer does not fit `max_batch_tokens`. Nothing was generated yet.
        """
        keys, prompts = list(conversations), [self.prompt_ids(messages) for messages in conversations.values()]
        loop = self._loop(generation, journal, prompts)
        for start in range(0, len(keys), N_TOGETHER):
            together = zip(keys[start : start + N_TOGETHER], prompts[start : start + N_TOGETHER], strict=True)
            searches = [self._new_search(prompt_from_messages(conversations[key]), ids, key) for key, ids in together]
            try:
                loop.start(searches)
                loop.run(searches)
            finally:
                for search in searches:
                    if search.outcome is not None:
                        add(search.steered_prompt(conversations[search.key]))

    def search_answered(
        self,
        prompts: Sequence[list[int]],
        parsed: Sequence[ParsedPrompt],
        answers: Sequence[list[int]],
        generation: ResolvedGeneration,
    ) -> list[SteeredPrompt]:
        """Search prompts that the model has answered.

        Args:
            prompts: The ids of each prompt.
            parsed: The conversation of each prompt.
            answers: The ids of the model's answer to each prompt.
            generation: How further answers are generated.

        Raises:
            JudgeError: There is no verdict.
        """
        loop = self._loop(generation, Journal(None, {}), prompts)
        conversations = [messages_with_prefill(prompt) for prompt in parsed]
        searches = [
            self._new_search(prompt, ids, conversation_key(messages), row)
            for row, (prompt, ids, messages) in enumerate(zip(parsed, prompts, conversations, strict=True))
        ]
        loop.start_with_answers(searches, answers)
        loop.run(searches)
        return [search.steered_prompt(messages) for search, messages in zip(searches, conversations, strict=True)]

    def _new_search(self, parsed: ParsedPrompt, ids: Sequence[int], key: str, row: int = 0) -> PromptSearch:
        """A search. Equal conversations share their random streams; in a batch, each row has its own place in the journal."""
        prompt = self._embedder.embed(ids, messages_with_prefill(parsed))
        seed = int.from_bytes(hashlib.sha256(f"{self.settings.seed} {key}".encode()).digest()[:4])
        sampler = ProbeSampler(prompt.embeds, prompt.perturbable, self.settings.config, seed)
        return PromptSearch(key if row == 0 else f"{key} {row}", parsed, prompt, sampler, seed)

    def _loop(self, generation: ResolvedGeneration, journal: Journal, prompts: Sequence[Sequence[int]]) -> SearchLoop:
        settings = self.settings
        generator = BatchedGenerator(self._model, generation, settings.max_batch_tokens, settings.probe_temperature)
        for ids in prompts:
            generator.n_tokens(len(ids))  # an error before anything is generated
        judge = JudgeCalls(self._judge, self._timed)
        return SearchLoop(
            generator, judge, self._accept, settings.config, settings.limits, journal, self._response_text, self._timed
        )

    def _response_text(self, parsed: ParsedPrompt, ids: Sequence[int]) -> str:
        """The whole response, prefill included, as a user sees it."""
        text = seen_bytes(self._tokenizer, self.pieces, ids)
        return continued(parsed, text).prefill.decode(errors="replace").strip()
