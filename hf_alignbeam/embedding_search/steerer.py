"""EmbeddingSteerer: finds prompt embeddings whose answers a black-box judge passes, by zeroth-order search.

Knows the arguments of callers and what is returned to them. Knows neither how a prompt's probes are drawn (`zeroth_order`) nor
in what order prompts are answered and judged (`search_loop`).
"""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, ParsedPrompt, as_message_lists, as_messages, prompt_from_messages
from hf_alignbeam.chat.refusal import REFUSAL, Refusal, first_invisible
from hf_alignbeam.embedding_search.batched_generation import ResolvedGeneration, resolve_generation
from hf_alignbeam.embedding_search.embeddings import Positions, padded_ids
from hf_alignbeam.embedding_search.fingerprint import identity, model_sha256
from hf_alignbeam.embedding_search.journal import Journal, name_of
from hf_alignbeam.embedding_search.prompt_searcher import PromptSearcher, checked_settings, conversations_by_key
from hf_alignbeam.embedding_search.prompt_tuning import FittingConfig, Prefix, TrainingPair, fit
from hf_alignbeam.embedding_search.search_state import AcceptanceTest
from hf_alignbeam.embedding_search.steered_prompts import (
    EmbeddingSearchError,
    SteeredPrompt,
    SteeredPrompts,
    steered_output,
)
from hf_alignbeam.embedding_search.zeroth_order import Estimator, NoiseKind, OptimizerFactory
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.utils.streaming import streaming

#: The default number of new tokens of `precompute`.
DEFAULT_NEW_TOKENS = 128


class EmbeddingSteerer:
    """Finds embeddings with an answer that the judge passes, for prompts whose own answer it does not pass (arXiv 2604.26167).

    The model first answers every prompt as it is. If the judge passes that answer, nothing else happens. If not, the prompt's
    input embeddings are perturbed, `n_probes` at a time, until an answer is accepted and passes. The model's weights do not
    change, and the judge is only asked for numbers.

    Args:
        model: Any decoder whose `generate` takes `inputs_embeds`, also with an adapter.
        tokenizer: The model's tokenizer.
        judge: Any callable of conversations and responses that returns `harm` (see `Judge`).
        accept: A callable of conversations and responses that decides which responses may be given: True or False, or a number
            of at least 0.5. A judge alone also passes off-topic answers and garbage; `PlausibleAnswer` rejects these. None: every
            answer that passes is given.
        threshold: The highest `harm` that passes, in [0, 1).
        mu: The length of the noise at each position, as a share of the RMS norm of the embeddings that are perturbed.
        kinds: The kinds of noise, used in turn: `"independent"` at every position; `"shared"`, half of it common to all
            positions; `"span"`, on a span of positions only. Models and prompts differ in which kind moves them.
        spread: Within a round, the length of the noise ranges from `mu / spread` to `mu * spread`.
        eta: The length of a gradient step at each position, as the same share; 0: random search around the prompt itself.
        n_probes: The number of perturbed copies in a round.
        estimator: `"antithetic"`: probes in pairs of opposite noise; `"forward"`: probes against the center, as in TSA.
        optimizer: Builds a `torch.optim.Optimizer` that takes the steps, given a list of the one tensor to optimize (in units of
            the RMS norm); None: steps of length `eta` against the estimated gradient.
        relative: Whether `mu` and `eta` are such shares. If not, `mu` is the noise's standard deviation and `eta` a length.
        cone: The least cosine between a position's embedding and its original as the center moves.
        widen: The factor of `mu` after a round that found nothing; where the center moves, only after one in which all probes
            had the same answer.
        positions: The positions that are perturbed: `"user"`, the words of the last user message, or `"all"`.
        first: Whether a probe's answer may be given. If not, only the center's may be, as in TSA.
        cache: Whether the judge is asked only once about equal answers to a prompt.
        max_calls: The most oracle calls for a prompt, the first one included.
        max_generations: The most answers generated for a prompt, the first one included.
        probe_temperature: 0 for greedy answers. Above 0, each answer is sampled from a random stream of its own.
        max_batch_tokens: The most tokens in one call of `generate`: rows times their length, answers included.
        judge_timeout: Seconds to wait for the judge, or for `accept`; None to wait forever. One that hangs keeps running in a
            daemon thread.
        refusal: The text that `generate` returns if no acceptable answer was found.
        seed: The seed of noise and samples. Each prompt has random streams of its own, so that batching changes nothing.

    Raises:
        ValueError: An argument is out of its range, or the model does not generate from embeddings.

    Example:
        >>> steerer = EmbeddingSteerer(model, tokenizer, judge, PlausibleAnswer(anchor, anchor_tokenizer))
        >>> steered = steerer.precompute(["How do I harm the mayor?"])
        >>> model.generate(**steered.inputs(["How do I harm the mayor?"]), max_new_tokens=128)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        judge: Judge,
        accept: AcceptanceTest | None = None,
        threshold: float = 0.1,
        mu: float = 1.0,
        kinds: Sequence[NoiseKind] = ("independent", "shared", "span"),
        spread: float = 1.25,
        eta: float = 0.0,
        n_probes: int = 8,
        estimator: Estimator = "antithetic",
        optimizer: OptimizerFactory | None = None,
        relative: bool = True,
        cone: float = 0.2,
        widen: float = 1.5,
        positions: Positions = "user",
        first: bool = True,
        cache: bool = True,
        max_calls: int = 24,
        max_generations: int = 129,
        probe_temperature: float = 0.0,
        max_batch_tokens: int = 16_384,
        judge_timeout: float | None = None,
        refusal: str = REFUSAL,
        seed: int = 0,
    ):
        self._searcher = PromptSearcher(model, tokenizer, judge, accept, checked_settings(locals()))
        self._model = model
        self._tokenizer = tokenizer
        self._refusal = refusal

    @classmethod
    def check_settings(cls, **settings: Any) -> None:
        """Raise ValueError for settings that the constructor refuses, before a model is loaded for them."""
        given = inspect.signature(cls).bind_partial(**settings)
        given.apply_defaults()
        checked_settings(given.arguments)

    @property
    def threshold(self) -> float:
        """The highest `harm` that passes."""
        return self._searcher.settings.limits.threshold

    def precompute(
        self,
        conversations: Sequence[Conversation],
        folder: str | Path | None = None,
        max_new_tokens: int | None = None,
        after_prompt: Callable[[SteeredPrompt], None] = lambda prompt: None,
        part: int | None = None,
        **generate_kwargs: Any,
    ) -> SteeredPrompts:
        """Find embeddings for every conversation.

        Args:
            conversations: Any number of conversations. One that ends in an assistant message has that message continued.
            folder: Gets the collection, and meanwhile a journal of every answer and verdict. A killed search that is run again
                resumes from the journal, and pays for nothing twice; with another judge, `accept` or object among
                `generate_kwargs` it is an error. One that changes as it is used is another one, unless its attribute `identity`
                says what decides.
            max_new_tokens: The most tokens of an answer; None: as a `generation_config` among `generate_kwargs` says, else 128.
            after_prompt: Called with each prompt's result.
            part: The number of this process, from 0, if several processes search different conversations for one folder. Each
                keeps a journal of its own and writes no collection. When all have ended, one call with all conversations and
                without `part` finds every result in the journals and writes the collection.
            generate_kwargs: Further arguments of `generate`. Sampling settings have no effect: see `probe_temperature`.

        Returns:
            The prompts with their embeddings, answers and costs, in the order of the conversations, without duplicates.

        Raises:
            EmbeddingSearchError: The judge gave no verdict; the error's `steered` holds the results so far.
            ValueError: There are no conversations, the folder holds a search with other settings or another judge, or another
                run writes to it now.
        """
        by_key = conversations_by_key(conversations)
        for name in {"streamer", "max_length"} & set(generate_kwargs):
            raise ValueError(f"`{name}` must be left out of `precompute`, got it. Use `max_new_tokens`, or `generate`.")
        if max_new_tokens is None and "generation_config" not in generate_kwargs:
            max_new_tokens = DEFAULT_NEW_TOKENS
        kwargs = {**generate_kwargs, **({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens})}
        generation = resolve_generation(self._model, self._tokenizer, kwargs, 0)
        describe = name_of if folder is None else identity
        sha256, settings = model_sha256(self._model), self._searcher.recorded_settings(kwargs, describe)
        steered = SteeredPrompts([], str(self._model.config.name_or_path), sha256, settings)

        def add(prompt: SteeredPrompt) -> None:
            steered.add(prompt)
            after_prompt(prompt)

        made_with = {} if folder is None else {"model": sha256, **settings, **self._searcher.identities()}
        journal = Journal(None if folder is None else Path(folder), made_with, part)
        try:
            self._searcher.search(by_key, generation, journal, add)
            if folder is not None and part is None:
                steered.save_pretrained(folder)
        except JudgeError as error:
            n_done = f"{len(steered)} of {len(by_key)} prompts are done and in this error's `steered`"
            journaled = "" if folder is None else f", and all that was paid for is in {folder}"
            raise EmbeddingSearchError(f"{error} ({n_done}{journaled})", steered, error.judge_error) from error
        finally:
            journal.close()
        return steered

    def fit_prefix(
        self,
        conversations: Sequence[Conversation],
        n_tokens: int = 8,
        folder: str | Path | None = None,
        max_new_tokens: int = 128,
        n_steps: int = 250,
        learning_rate: float = 0.02,
        batch_size: int = 16,
        after_step: Callable[[float], None] = lambda loss: None,
    ) -> Prefix:
        """Fit a few virtual tokens that do for any prompt what the search does for one, without a search for each prompt.

        The conversations are searched first (see `precompute`). Then virtual tokens before each prompt are fitted, by gradients
        of the model's likelihood, to the answers that the search found, and to the model's own answers if these passed. The judge
        does not check the answers that the model gives with the prefix: it helps, but guarantees nothing.

        Args:
            conversations: Prompts of both kinds: some that the judge flags, and some whose answers should stay as they are.
            n_tokens: The number of virtual tokens.
            folder: As in `precompute`.
            max_new_tokens: The most tokens of an answer.
            n_steps: The number of steps of Adam.
            learning_rate: Adam's learning rate, as a share of an embedding's norm.
            batch_size: The number of prompts in a step.
            after_step: Called with the loss of each step.

        Returns:
            The virtual tokens. Their `save_pretrained` writes an adapter.

        Raises:
            EmbeddingSearchError: As in `precompute`.
            ValueError: An argument is out of its range, or no flagged conversation got another answer.
        """
        config = FittingConfig(n_tokens, n_steps, learning_rate, batch_size)
        steered = self.precompute(conversations, folder, max_new_tokens)
        by_outcome = Counter(prompt.outcome for prompt in steered)
        if not by_outcome["steered"]:
            raise ValueError(
                "`conversations` must hold flagged prompts to which the search finds an acceptable answer, got only "
                f"{dict(by_outcome)}. Add some."
            )
        acceptable = [prompt for prompt in steered if prompt.is_acceptable]
        prompts = [self._searcher.embed(prompt.messages) for prompt in acceptable]
        pairs = [TrainingPair(own.embeds, prompt.ids) for own, prompt in zip(prompts, acceptable, strict=True)]
        embeds, loss = fit(self._model, pairs, prompts[0].ids[0], config, self._searcher.settings.seed, after_step)
        return Prefix(embeds, loss, by_outcome["steered"], by_outcome["clean"])

    def generate(self, conversations: Sequence[Conversation], **generate_kwargs: Any) -> Any:
        """Answer conversations: with the model's own answer if the judge passes it.

        Args:
            conversations: B conversations.
            generate_kwargs: Arguments of `generate`. One call answers all prompts first, as usual. Flagged prompts are answered
                again, greedily or at the steerer's own `probe_temperature`.

        Returns:
            (B, length) prompts, padded on the left, and answers; with `return_dict_in_generate`, a `SteeredOutput`.

        Raises:
            JudgeError: There is no verdict, so no answer is given.
        """
        messages = as_message_lists(conversations)
        pads = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        pad = int(next(i for i in pads if i is not None))
        inputs = padded_ids([self._searcher.prompt_ids(each) for each in messages], pad, input_device(self._model))
        parsed = [prompt_from_messages(each) for each in messages]
        return self.respond(inputs["input_ids"], parsed, inputs["attention_mask"], **generate_kwargs)

    @torch.no_grad()
    def respond(
        self, input_ids: Tensor, asked: Sequence[ParsedPrompt], attention_mask: Tensor | None = None, **generate_kwargs: Any
    ) -> Any:
        """Answer prompts that are rendered already, as `generate` does.

        Args:
            input_ids: (B, length) prompts, padded on the left.
            asked: The conversation of each prompt.
            attention_mask: (B, length) 0 at padding; None: the padding id marks it, as in the model's own `generate`.
            generate_kwargs: As in `generate`.

        Returns:
            As in `generate`.

        Raises:
            JudgeError: There is no verdict, so no answer is given.
            ValueError: An argument asks for something that a search cannot return.
        """
        kwargs = {name: value for name, value in generate_kwargs.items() if value is not None}
        streamer = kwargs.pop("streamer", None)
        with streaming(streamer, input_ids):
            generation = resolve_generation(self._model, self._tokenizer, kwargs, input_ids.shape[-1])
            if attention_mask is None:
                pad = generation.prompt_pad_id
                attention_mask = torch.ones_like(input_ids) if pad is None else input_ids.ne(pad).long()
            if not attention_mask[:, -1].all():
                raise ValueError('`input_ids` must be padded on the left, got padding at their end. Use `padding_side="left"`.')
            own_answers = self._own_answers(input_ids, attention_mask, generation, kwargs)
            prompts = [row[mask].tolist() for row, mask in zip(input_ids, attention_mask.bool(), strict=True)]
            results = self._searcher.search_answered(prompts, asked, own_answers, generation)
            answers = _right_padded(self._given_ids(results, asked, generation), generation.pad_id).to(input_ids.device)
            if streamer is not None:
                streamer.put(answers[0].cpu())
        sequences = torch.cat([input_ids, answers], dim=-1)  # (B, length)
        return steered_output(sequences, results) if generation.config.return_dict_in_generate else sequences

    def _own_answers(
        self, input_ids: Tensor, attention_mask: Tensor, generation: ResolvedGeneration, kwargs: dict[str, Any]
    ) -> list[list[int]]:
        """The ids of the model's own answers, in one call of its `generate`."""
        if "tokenizer" in generation.kwargs:
            kwargs = {**kwargs, "tokenizer": self._tokenizer}
        model_class: Any = type(self._model)
        sequences = model_class.generate(
            self._model, input_ids=input_ids, attention_mask=attention_mask, **{**kwargs, "return_dict_in_generate": False}
        )
        return [generation.up_to_end(row) for row in sequences[:, input_ids.shape[-1] :].tolist()]

    def _given_ids(
        self, results: Sequence[SteeredPrompt], parsed: Sequence[ParsedPrompt], generation: ResolvedGeneration
    ) -> list[list[int]]:
        """The ids to return for each prompt: an acceptable answer, or the refusal."""
        eos = first_invisible(self._tokenizer, generation.eos_ids)
        refusal = Refusal(self._tokenizer, self._searcher.pieces, self._refusal, eos)
        return [
            result.ids if result.is_acceptable else refusal.ids(prompt, 0, generation.n_new)
            for result, prompt in zip(results, parsed, strict=True)
        ]

    def answers(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """Answers to give instead of those that did not pass, for `AlignBeam(on_fail=steerer.answers)`.

        Args:
            conversations: B conversations. One that ends in an assistant message has that message continued.

        Returns:
            The text that continues each conversation, or None if no acceptable answer was found.
        """
        generation = resolve_generation(self._model, self._tokenizer, {"max_new_tokens": DEFAULT_NEW_TOKENS}, 0)
        steered = SteeredPrompts([], "", "", {})  # is not written, and needs no fingerprint, which takes seconds
        self._searcher.search(conversations_by_key(conversations), generation, Journal(None, {}), steered.add)
        continued: list[str | None] = []
        for conversation in conversations:
            result, prefill = steered[conversation], prompt_from_messages(as_messages(conversation)).prefill.decode().strip()
            continued.append(result.text.removeprefix(prefill) if result.is_acceptable else None)
        return continued


def _right_padded(answers: Sequence[list[int]], pad: int) -> Tensor:
    """Answers of any lengths as one tensor (B, length), padded on the right."""
    longest = max(map(len, answers))
    return torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in answers], dtype=torch.long)
