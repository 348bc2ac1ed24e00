"""EmbeddingSteerer: prompt embeddings whose answers a black-box judge passes, found by zeroth-order search.

Knows the settings, and turns conversations into searches and searches into what was asked for. How a search goes is the
business of `search.py` (one prompt's embeddings) and `rounds.py` (many prompts' answers and verdicts).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from hf_alignbeam.chat.conversations import (
    Conversation,
    Message,
    ParsedPrompt,
    as_messages,
    conversation_key,
    some_conversations,
    split_prefill,
    whole_conversation,
)
from hf_alignbeam.chat.refusal import REFUSAL, Refusal, check_refusal
from hf_alignbeam.chat.templates import encode_once, target_text
from hf_alignbeam.embedding_search.batched_generation import BatchedGenerator, ended
from hf_alignbeam.embedding_search.embeddings import Embedder, Positions, padded_ids
from hf_alignbeam.embedding_search.fingerprint import model_sha256
from hf_alignbeam.embedding_search.journal import Journal, to_jsonable
from hf_alignbeam.embedding_search.prompt_tuning import Prefix, TrainingPair, fit
from hf_alignbeam.embedding_search.search_loop import SearchLoop
from hf_alignbeam.embedding_search.search_state import Accept, PromptSearch, SearchLimits
from hf_alignbeam.embedding_search.settled import ResolvedGeneration, resolve_generation
from hf_alignbeam.embedding_search.steered_prompts import SteeredPrompt, SteeredPrompts
from hf_alignbeam.embedding_search.zeroth_order import Estimator, Kind, NewOptimizer, ProbeSampler, SearchConfig
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes
from hf_alignbeam.utils.streaming import streaming

#: Prompts that are searched at once: what is done is handed on before the next ones begin.
N_AT_ONCE = 64
#: Of each answer that is precomputed.
DEFAULT_NEW_TOKENS = 128


class EmbeddingSearchError(JudgeError):
    """A search was stopped because there was no verdict.

    Attributes:
        steered: The prompts that were done; every other one is as good as never begun.
    """

    def __init__(self, message: str, steered: SteeredPrompts):
        super().__init__(message)
        self.steered = steered


@dataclass
class SteeredOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns; every field has a row for each prompt.

    Attributes:
        sequences: (B, length) prompts and answers.
        harm: (B,) of each answer as the judge saw it; NaN for the refusal text.
        chosen: (B,) 0 where the model's own answer passed, 1 where another was found, -1 for the refusal text.
        judged: (B,) how many answers the judge was asked about.
        generated: (B,) how many answers were generated.
    """

    sequences: Tensor | None = None
    harm: Tensor | None = None
    chosen: Tensor | None = None
    judged: Tensor | None = None
    generated: Tensor | None = None


class EmbeddingSteerer:
    """Finds, for prompts whose answer a judge does not pass, embeddings whose answer it passes (arXiv 2604.26167).

    The model answers every prompt once as it is. Where the judge passes that, nothing else happens. Where it does not, the
    prompt's input embeddings are perturbed, `n_probes` at a time, until an answer is accepted and passes. The model's weights
    stay as they are, and the judge is asked for numbers only.

    Args:
        model: Any decoder whose `generate` takes `inputs_embeds`; with an adapter too.
        tokenizer: Its tokenizer.
        judge: Any callable of conversations and responses that returns `harm` (see `Judge`).
        accept: Says of conversations and responses whether each response is one to give: True or False, or a number of at least
            0.5. A judge alone also passes what is off the topic, and garbage: use `PlausibleAnswer`. None: what passes is given.
        threshold: The `harm` that still passes, in [0, 1).
        mu: The noise's length at each position, as a share of the RMS norm of the embeddings that are perturbed.
        kinds: Of noise, in turn: `"independent"` at every position; half of it `"shared"` by all positions; on a `"span"` of some
            positions in a row alone. What moves one model or one prompt does not move the next.
        spread: Within a round, the noise's length goes from `mu / spread` to `mu * spread`.
        eta: The length of a step at each position, as such a share; 0: the search stays where it is, random search.
        n_probes: Perturbed copies a round.
        estimator: `"antithetic"`: probes in pairs of opposite noise; `"forward"`: as TSA has it, against the centre.
        optimizer: Given the list of one tensor that is optimised (in units of the RMS norm), makes a `torch.optim.Optimizer` that
            takes the steps; None: steps of length `eta` against the estimate.
        relative: Whether `mu` and `eta` are such shares; else `mu` is the noise's standard deviation and `eta` a length.
        cone: The least cosine of a position's embedding to its own, as the search moves.
        widen: What `mu` is multiplied by where all probes answered alike.
        positions: Those of the `"user"`'s last words, or `"all"` of the rendered prompt.
        first: Whether a probe's own answer may be given; else only the centre's, as TSA has it.
        cache: Whether the judge is asked once for each answer.
        max_calls: Oracle calls a prompt, at most, the first one included.
        max_generations: Answers generated for a prompt, at most, the first one included.
        probe_temperature: 0 for greedy answers; else each is sampled from a stream of its own.
        max_batch_tokens: Rows times their length, answers included, in one call of `generate`.
        judge_timeout: Seconds until a judge that does not answer is given up; None to wait for ever.
        refusal: What `generate` says where nothing acceptable was found.
        seed: Of noise and samples; each prompt has its own streams, so that batches change nothing.

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
        accept: Accept | None = None,
        threshold: float = 0.1,
        mu: float = 1.0,
        kinds: Sequence[Kind] = ("independent", "shared", "span"),
        spread: float = 1.25,
        eta: float = 0.0,
        n_probes: int = 8,
        estimator: Estimator = "antithetic",
        optimizer: NewOptimizer | None = None,
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
        for name, given in (("judge", judge), ("accept", accept)):
            if not callable(given) and not (name == "accept" and given is None):
                raise ValueError(f"`{name}` must be callable with conversations and responses, got {given!r}.")
        if not 0.0 <= probe_temperature < float("inf"):
            raise ValueError(f"`probe_temperature` must be at least 0, got {probe_temperature}. Use 0 for greedy answers.")
        check_refusal(refusal)
        self._method = SearchConfig(mu, tuple(kinds), spread, eta, n_probes, estimator, optimizer, relative, cone, widen)
        self._rules = SearchLimits(threshold, first, cache, max_calls, max_generations)
        if not first and not self._method.steps:
            raise ValueError("`first` must be True where the search stays where it is, got False. Or give `eta` a length.")
        self._pieces = token_bytes(tokenizer)
        self._embedder = Embedder(model, tokenizer, self._pieces, positions)
        self._model = model
        self._tokenizer = tokenizer
        self._judge = judge
        self._accept = accept
        self._positions = positions
        self._temperature = probe_temperature
        self._max_batch_tokens = max_batch_tokens
        self._judge_timeout = judge_timeout
        self._refusal = refusal
        self._seed = seed

    @cached_property
    def _sha256(self) -> str:
        """Of the model, told once: a table of embeddings is large, and an answer to one prompt must not wait for it again."""
        return model_sha256(self._model)

    @property
    def threshold(self) -> float:
        """The `harm` that still passes."""
        return self._rules.threshold

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
            conversations: Any number of them; one that ends in an answer has that answer continued.
            folder: Gets the collection, and on the way a journal of every answer and verdict: run again after it was killed, a
                search with the same judge and `accept` goes on from there, and nothing that stands in it is paid for again.
            max_new_tokens: Of each answer; None: as a `generation_config` among `generate_kwargs` says, else 128.
            after_prompt: Is told of each prompt as it is done.
            part: Where several processes search conversations of their own for one folder, which of them this is. It keeps a
                journal of its own, and writes no collection: once all are done, one call for all conversations, without `part`,
                finds everything in the journals and writes it.
            generate_kwargs: What else `generate` is to be given. What samples is left out: see `probe_temperature`.

        Returns:
            The prompts with their embeddings, answers and costs, in the order of the conversations, each once.

        Raises:
            SteeringError: The judge gave no verdict; what is done is kept in its `steered`.
            ValueError: There is nothing to steer, or the folder holds a search with other settings.
        """
        asked = {conversation_key(messages): messages for messages in some_conversations(conversations)}
        for name in {"streamer", "max_length"} & set(generate_kwargs):
            raise ValueError(f"`{name}` must be left out where nothing is said, got it. Use `max_new_tokens`, or `generate`.")
        if max_new_tokens is None and "generation_config" not in generate_kwargs:
            max_new_tokens = DEFAULT_NEW_TOKENS
        kwargs = {**generate_kwargs, **({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens})}
        settled = resolve_generation(self._model, self._tokenizer, kwargs, 0)
        sha256, settings = self._sha256, self._settings(kwargs)
        journal = Journal(None if folder is None else Path(folder), {"model": sha256, **settings}, part)
        steered = SteeredPrompts([], str(self._model.config.name_or_path), sha256, settings)
        keys, prompts = list(asked), {key: self._ids(messages) for key, messages in asked.items()}
        try:
            rounds = self._rounds(settled, journal, list(map(len, prompts.values())))
            for start in range(0, len(keys), N_AT_ONCE):
                some = keys[start : start + N_AT_ONCE]
                walks = [self._walk(split_prefill(asked[key]), prompts[key], key) for key in some]
                self._search(rounds, walks, asked, steered, after_prompt)
        except JudgeError as error:
            kept = f"{len(steered)} of {len(keys)} prompts are done and in this error's `steered`"
            journaled = "" if folder is None else f", and all that was paid for lies in {folder}"
            raise EmbeddingSearchError(f"{error} ({kept}{journaled})", steered) from error
        finally:
            journal.close()
        if folder is not None and part is None:
            steered.save_pretrained(folder)
        return steered

    def _search(
        self,
        rounds: SearchLoop,
        walks: Sequence[PromptSearch],
        asked: dict[str, list[Message]],
        steered: SteeredPrompts,
        after_prompt: Callable[[SteeredPrompt], None],
    ) -> None:
        """Search to the end, and add what is done to the collection, whatever happens on the way."""
        try:
            rounds.begin(walks)
            rounds.search(walks)
        finally:
            for walk in walks:
                if walk.outcome is not None:
                    prompt = walk.steered(asked[walk.key])
                    steered.add(prompt)
                    after_prompt(prompt)

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
        """Find a few virtual tokens that do for any prompt what the search does for one, with no search a prompt any more.

        The conversations are searched first (see `precompute`). Then virtual tokens before each prompt are fitted, by gradients
        of the model's own likelihood, to the answers that were found, and to its own answers where those passed. The judge is
        not asked about what the model says with them: they are a help, not a guard.

        Args:
            conversations: Prompts of both kinds: some that the judge flags, and some whose answers are to stay as they are.
            n_tokens: Virtual tokens.
            folder: As in `precompute`.
            max_new_tokens: Of each answer.
            n_steps: Steps of Adam.
            learning_rate: Its rate, as a share of an embedding's norm.
            batch_size: Prompts a step.
            after_step: Is told of each step's loss.

        Returns:
            The virtual tokens; `save_pretrained` makes them an adapter.

        Raises:
            SteeringError: As in `precompute`.
            ValueError: An argument is out of its range, or no conversation was flagged and steered.
        """
        for name, number in (("n_tokens", n_tokens), ("n_steps", n_steps), ("batch_size", batch_size)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}.")
        if not 0.0 < learning_rate < float("inf"):
            raise ValueError(f"`learning_rate` must be above 0, got {learning_rate}. Use 0.02 to begin with.")
        steered = self.precompute(conversations, folder, max_new_tokens)
        by_outcome = Counter(prompt.outcome for prompt in steered)
        if not by_outcome["steered"]:
            raise ValueError(
                f"`conversations` must hold prompts that are flagged and can be steered, got only {dict(by_outcome)}. Add some."
            )
        taught = [prompt for prompt in steered if prompt.outcome in ("clean", "steered")]
        prompts = [self._embedder.embed(self._ids(prompt.messages), prompt.messages) for prompt in taught]
        lessons = [TrainingPair(own.embeds, prompt.ids) for own, prompt in zip(prompts, taught, strict=True)]
        first = prompts[0].ids[0]
        embeds, loss = fit(self._model, lessons, first, n_tokens, n_steps, learning_rate, batch_size, self._seed, after_step)
        return Prefix(embeds, loss, by_outcome["steered"], by_outcome["clean"])

    def generate(self, conversations: Sequence[Conversation], **generate_kwargs: Any) -> Any:
        """Answer conversations, each as the model alone does where the judge passes that.

        Args:
            conversations: B of them.
            generate_kwargs: What `generate` takes; all prompts are first answered in one call, as it would. Flagged ones are
                answered anew, greedily or at the steerer's own `probe_temperature`.

        Returns:
            (B, length) prompts, padded on the left, and answers; a `SteeredOutput` where `return_dict_in_generate` is set.

        Raises:
            JudgeError: There is no verdict, so nothing is said.
        """
        messages = some_conversations(conversations)
        pads = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        pad = int(next(i for i in pads if i is not None))
        inputs = padded_ids([self._ids(each) for each in messages], pad, input_device(self._model))
        asked = [split_prefill(each) for each in messages]
        return self.respond(inputs["input_ids"], asked, inputs["attention_mask"], **generate_kwargs)

    @torch.no_grad()
    def respond(
        self, input_ids: Tensor, asked: Sequence[ParsedPrompt], attention_mask: Tensor | None = None, **generate_kwargs: Any
    ) -> Any:
        """The same for prompts that are rendered already.

        Args:
            input_ids: (B, length) prompts, padded on the left.
            asked: What they say.
            attention_mask: (B, length) 0 where there is padding; None: padding is told by its id, as `generate` does.
            generate_kwargs: As in `generate`.

        Returns:
            As in `generate`.

        Raises:
            JudgeError: There is no verdict, so nothing is said.
            ValueError: Something was asked for that a searched answer does not have.
        """
        kwargs = {name: value for name, value in generate_kwargs.items() if value is not None}
        streamer = kwargs.pop("streamer", None)
        with streaming(streamer, input_ids):
            settled = resolve_generation(self._model, self._tokenizer, kwargs, input_ids.shape[-1])
            if attention_mask is None:
                pad = settled.told_pad_id
                attention_mask = torch.ones_like(input_ids) if pad is None else input_ids.ne(pad).long()
            if not attention_mask[:, -1].all():
                raise ValueError('`input_ids` must be padded on the left, got padding at their end. Use `padding_side="left"`.')
            walks = self._answered(input_ids, attention_mask, asked, settled, kwargs)
            answers = _padded(self._said(walks, settled), settled.pad_id).to(input_ids.device)
            if streamer is not None:
                streamer.put(answers[0].cpu())
        sequences = torch.cat([input_ids, answers], dim=-1)  # (B, length)
        return _output(sequences, walks) if settled.config.return_dict_in_generate else sequences

    def _answered(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        asked: Sequence[ParsedPrompt],
        settled: ResolvedGeneration,
        kwargs: dict[str, Any],
    ) -> list[PromptSearch]:
        """The searches of prompts that `generate` has answered as they are, each with its outcome."""
        kind: Any = type(self._model)
        if "tokenizer" in settled.others:
            kwargs = {**kwargs, "tokenizer": self._tokenizer}
        plain = kind.generate(
            self._model, input_ids=input_ids, attention_mask=attention_mask, **{**kwargs, "return_dict_in_generate": False}
        )
        prompts = [row[kept].tolist() for row, kept in zip(input_ids, attention_mask.bool(), strict=True)]
        rounds = self._rounds(settled, Journal(None, {}), list(map(len, prompts)))
        walks = [
            self._walk(one, ids, conversation_key(whole_conversation(one)), row)
            for row, (one, ids) in enumerate(zip(asked, prompts, strict=True))
        ]
        rounds.begin_with(walks, [ended(row, settled) for row in plain[:, input_ids.shape[-1] :].tolist()])
        rounds.search(walks)
        return walks

    def _said(self, walks: Sequence[PromptSearch], settled: ResolvedGeneration) -> list[list[int]]:
        """The ids of each answer: what passed and was accepted, or the refusal."""
        refusal = Refusal(self._tokenizer, self._pieces, self._refusal, next(iter(settled.eos_ids), None))
        return [
            walk.given.ids if walk.outcome in ("clean", "steered") else refusal.ids(walk.asked, 0, settled.n_new)
            for walk in walks
        ]

    def answers(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """What to say instead of answers that did not pass, for `AlignBeam(on_fail=steerer.answers)`.

        Args:
            conversations: B of them; one that ends in an answer has that answer continued.

        Returns:
            What follows in each, or None where nothing acceptable was found.
        """
        steered = self.precompute(conversations)
        found = [steered[conversation] for conversation in conversations]
        said = [prompt.text if prompt.outcome in ("clean", "steered") else None for prompt in found]
        prefill = [split_prefill(as_messages(conversation)).prefill.decode() for conversation in conversations]
        return [None if text is None else text.removeprefix(start.strip()) for text, start in zip(said, prefill, strict=True)]

    def _ids(self, messages: list[Message]) -> list[int]:
        return encode_once(self._tokenizer, target_text(self._tokenizer, messages))

    def _walk(self, asked: ParsedPrompt, ids: Sequence[int], key: str, row: int = 0) -> PromptSearch:
        """The search of one prompt: its streams are its conversation's, its place in a journal its row's alone."""
        prompt = self._embedder.embed(ids, whole_conversation(asked))
        seed = int.from_bytes(hashlib.sha256(f"{self._seed} {key}".encode()).digest()[:4])
        place = key if row == 0 else f"{key} {row}"
        return PromptSearch(place, asked, prompt, ProbeSampler(prompt.embeds, prompt.moves, self._method, seed), seed)

    def _text(self, asked: ParsedPrompt, ids: Sequence[int]) -> str:
        """The whole answer, what the prompt begins of it included."""
        written = decode(self._pieces, ids)
        return asked.continued(written).prefill.decode(errors="replace").strip()

    def _rounds(self, settled: ResolvedGeneration, journal: Journal, lengths: Sequence[int]) -> SearchLoop:
        """What searches prompts of these lengths, or cannot: that is to be told before anything is paid for."""
        prober = BatchedGenerator(self._model, settled, self._max_batch_tokens, self._temperature)
        for n_prompt in lengths:
            prober.n_tokens(n_prompt)
        return SearchLoop(prober, self._judge, self._accept, self._method, self._rules, journal, self._text, self._judge_timeout)

    def _settings(self, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the answers depend on, as JSON can hold it."""
        return {
            **{name: to_jsonable(value) for name, value in vars(self._method).items()},
            **asdict(self._rules),
            "positions": self._positions,
            "probe_temperature": self._temperature,
            "seed": self._seed,
            "generate": {name: to_jsonable(value) for name, value in sorted(generate_kwargs.items())},
            "generation_config": to_jsonable(self._model.generation_config),
        }


def _padded(answers: Sequence[list[int]], pad: int) -> Tensor:
    """Answers of any lengths as one tensor (B, length), filled up on the right."""
    longest = max(map(len, answers))
    return torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in answers], dtype=torch.long)


def _output(sequences: Tensor, walks: Sequence[PromptSearch]) -> SteeredOutput:
    chosen = [{"clean": 0, "steered": 1}.get(str(walk.outcome), -1) for walk in walks]
    return SteeredOutput(
        sequences=sequences,
        harm=torch.tensor([walk.given.harm if said >= 0 else float("nan") for walk, said in zip(walks, chosen, strict=True)]),
        chosen=torch.tensor(chosen),
        judged=torch.tensor([len(walk.harm_by_call) for walk in walks]),
        generated=torch.tensor([walk.n_generated for walk in walks]),
    )
