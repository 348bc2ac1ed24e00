"""EmbeddingSteerer: prompt embeddings whose answers a black-box judge passes, found by zeroth-order search.

Knows the settings, and turns conversations into searches and searches into what was asked for. How a search goes is the
business of `search.py` (one prompt's embeddings) and `rounds.py` (many prompts' answers and verdicts).
"""

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from .asking import JudgeError
from .chat import (
    Asked,
    Conversation,
    Message,
    as_messages,
    asked_of,
    conversation_key,
    encode_once,
    target_text,
    whole_conversation,
)
from .embedding import Embedder, Positions, prompt_mask, table_sha256
from .engines import input_device
from .journal import Journal
from .judge import Judge
from .prefix import Lesson, Prefix, fit
from .probing import Prober
from .refusal import REFUSAL, Refusal
from .rounds import Accept, Rounds, Rules, Walk
from .search import Estimator, Method, NewOptimizer, Search
from .steered import SteeredPrompt, SteeredPrompts
from .vocab import token_bytes

#: Test-Time Safety Alignment as printed (arXiv 2604.26167), with its constants for Llama-3.1-8B: `mu` and `eta` are lengths.
TSA: dict[str, Any] = {
    "threshold": 0.1,
    "mu": 0.1,
    "spread": 1.0,
    "eta": 1.3,
    "n_probes": 8,
    "estimator": "forward",
    "relative": False,
    "cone": 0.2,
    "widen": 1.0,
    "positions": "all",
    "first": False,
    "cache": False,
    "max_calls": 91,
    "max_generations": 91,
    "temperature": 0.1,
}
#: Prompts that are searched at once: what is done is handed on before the next ones begin.
N_AT_ONCE = 64
#: The length of prompt and answer where nobody says one, as in transformers 5.23.
DEFAULT_LENGTH = 20
#: What `generate` may be asked for beside sequences, which a searched answer does not have.
BY_STEP = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


class SteeringError(JudgeError):
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
        steered: (B,) 0 where the first answer passed, 1 where another was found, -1 for the refusal text.
        oracle_calls: (B,) how often the judge was asked.
        generated: (B,) how many answers were generated.
    """

    sequences: Tensor | None = None
    harm: Tensor | None = None
    steered: Tensor | None = None
    oracle_calls: Tensor | None = None
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
        mu: The noise's length at each position, as a share of the RMS norm of the prompt's embeddings.
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
        temperature: 0 for greedy answers; else each is sampled from a stream of its own.
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
        mu: float = 1.5,
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
        temperature: float = 0.0,
        max_batch_tokens: int = 16_384,
        judge_timeout: float | None = None,
        refusal: str = REFUSAL,
        seed: int = 0,
    ):
        for name, given in (("judge", judge), ("accept", accept)):
            if not callable(given) and not (name == "accept" and given is None):
                raise ValueError(f"`{name}` must be callable with conversations and responses, got {given!r}.")
        if not 0.0 <= temperature < float("inf"):
            raise ValueError(f"`temperature` must be at least 0, got {temperature}. Use 0 for greedy answers.")
        self._method = Method(mu, spread, eta, n_probes, estimator, optimizer, relative, cone, widen)
        self._rules = Rules(threshold, first, cache, max_calls, max_generations)
        self._pieces = token_bytes(tokenizer)
        self._embedder = Embedder(model, tokenizer, self._pieces, positions)
        self._model = model
        self._tokenizer = tokenizer
        self._judge = judge
        self._accept = accept
        self._positions = positions
        self._temperature = temperature
        self._max_batch_tokens = max_batch_tokens
        self._judge_timeout = judge_timeout
        self._refusal_text = refusal
        self._seed = seed
        self._refusal(None)  # what cannot be said is to be told now

    @property
    def threshold(self) -> float:
        """The `harm` that still passes."""
        return self._rules.threshold

    def precompute(
        self,
        conversations: Sequence[Conversation],
        folder: str | Path | None = None,
        max_new_tokens: int = 128,
        after_prompt: Callable[[SteeredPrompt], None] = lambda prompt: None,
        **generate_kwargs: Any,
    ) -> SteeredPrompts:
        """Find embeddings for every conversation.

        Args:
            conversations: Any number of them; one that ends in an answer has that answer continued.
            folder: Gets the collection, and on the way a journal of every answer and verdict: run again after it was killed, a
                search goes on from there and pays for nothing twice.
            max_new_tokens: Of each answer.
            after_prompt: Is told of each prompt as it is done.
            generate_kwargs: What else `generate` is to be given. What samples is left out: see `temperature`.

        Returns:
            The prompts with their embeddings, answers and costs, in the order of the conversations, each once.

        Raises:
            SteeringError: The judge gave no verdict; what is done is kept in its `steered`.
            ValueError: There is nothing to steer, or the folder holds a search with other settings.
        """
        if isinstance(conversations, str) or not conversations:
            raise ValueError(f"`conversations` must hold at least one conversation, got {conversations!r}. Put it in a list.")
        asked = {conversation_key(messages): messages for messages in map(as_messages, conversations)}
        config, others = self._settled({"max_new_tokens": max_new_tokens, **generate_kwargs}, 0)
        table = table_sha256(self._model)
        settings = self._settings(generate_kwargs, max_new_tokens)
        journal = Journal(None if folder is None else Path(folder), {"embedding table": table, **settings})
        rounds = self._rounds(config, others, journal)
        steered = SteeredPrompts([], str(self._model.config.name_or_path), table, settings)
        keys = list(asked)
        try:
            for start in range(0, len(keys), N_AT_ONCE):
                began = [self._walk(asked_of(asked[key]), self._ids(asked[key]), key) for key in keys[start : start + N_AT_ONCE]]
                try:
                    rounds.begin(began)
                    rounds.search(began)
                finally:
                    for walk in began:
                        if walk.outcome is not None:
                            steered.add(prompt := _steered(walk, asked[walk.key]))
                            after_prompt(prompt)
        except JudgeError as error:
            kept = f"{len(steered)} of {len(keys)} prompts are done and in this error's `steered`"
            journaled = "" if folder is None else f", and all that was paid for lies in {folder}"
            raise SteeringError(f"{error} ({kept}{journaled})", steered) from error
        finally:
            journal.close()
        if folder is not None:
            steered.save_pretrained(folder)
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
        """Find a few virtual tokens that do for any prompt what the search does for one: nothing is paid a prompt any more.

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
        lessons = []
        for prompt in steered:
            if prompt.outcome in ("clean", "steered"):
                ids = self._ids(prompt.messages)
                lessons.append(Lesson(self._embedder.embed(ids, prompt.messages).embeds, prompt.ids))
        embeds, loss = fit(self._model, lessons, ids[0], n_tokens, n_steps, learning_rate, batch_size, self._seed, after_step)
        return Prefix(embeds, loss, by_outcome["steered"], by_outcome["clean"])

    def generate(self, conversations: Sequence[Conversation], **generate_kwargs: Any) -> Any:
        """Answer conversations, each as the model alone does where the judge passes that.

        Args:
            conversations: B of them.
            generate_kwargs: What `generate` takes. Flagged prompts are answered anew, greedily or at the steerer's own
                `temperature`.

        Returns:
            (B, length) prompts, padded on the left, and answers; a `SteeredOutput` where `return_dict_in_generate` is set.

        Raises:
            JudgeError: There is no verdict, so nothing is said.
        """
        messages = [as_messages(conversation) for conversation in conversations]
        prompts = [self._ids(each) for each in messages]
        width, pad = max(map(len, prompts)), self._pad()
        device = input_device(self._model)
        ids = torch.tensor([[pad] * (width - len(each)) + each for each in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device)
        return self.respond(ids, [asked_of(each) for each in messages], attention_mask=mask, **generate_kwargs)

    @torch.no_grad()
    def respond(
        self, input_ids: Tensor, asked: Sequence[Asked], attention_mask: Tensor | None = None, **generate_kwargs: Any
    ) -> Any:
        """The same for prompts that are rendered already.

        Args:
            input_ids: (B, length) prompts, padded on the left.
            asked: What they say.
            attention_mask: (B, length) 0 where there is padding; None: padding is told by its id, as `generate` does.
            generate_kwargs: As in `generate`.
        """
        generate_kwargs = {name: value for name, value in generate_kwargs.items() if value is not None}
        config, others = self._settled(generate_kwargs, input_ids.shape[-1])
        if attention_mask is None:
            attention_mask = prompt_mask(input_ids, config.pad_token_id, config.eos_token_id)
        streamer = generate_kwargs.pop("streamer", None)
        kind: Any = type(self._model)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        try:
            plain = kind.generate(self._model, **inputs, **{**generate_kwargs, "return_dict_in_generate": False})
            rounds = self._rounds(config, others, Journal(None, {}))
            kept = attention_mask.bool()
            prompts = [row[mask].tolist() for row, mask in zip(input_ids, kept, strict=True)]
            walks = [
                self._walk(one, ids, conversation_key(whole_conversation(one))) for one, ids in zip(asked, prompts, strict=True)
            ]
            rounds.begin_with(walks, [rounds.prober.ended(row) for row in plain[:, input_ids.shape[-1] :].tolist()])
            rounds.search(walks)
            refusal = self._refusal(config)
            answers = [
                walk.given.ids if walk.outcome in ("clean", "steered") else refusal.ids(walk.asked, 0, config.max_new_tokens)
                for walk in walks
            ]
            pad = int(config.pad_token_id if config.pad_token_id is not None else self._pad())
            longest = max(map(len, answers))
            padded = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in answers], device=input_ids.device)
            if streamer is not None:
                streamer.put(input_ids.cpu())
                streamer.put(padded[0].cpu())
        finally:
            if streamer is not None:
                streamer.end()
        sequences = torch.cat([input_ids, padded], dim=-1)  # (B, length)
        return _output(sequences, walks) if config.return_dict_in_generate else sequences

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
        begun = [asked_of(as_messages(conversation)).begun.decode() for conversation in conversations]
        return [None if text is None else text.removeprefix(start.strip()) for text, start in zip(said, begun, strict=True)]

    def _ids(self, messages: list[Message]) -> list[int]:
        return encode_once(self._tokenizer, target_text(self._tokenizer, messages))

    def _walk(self, asked: Asked, ids: Sequence[int], key: str) -> Walk:
        """The search of one prompt, its streams its own."""
        prompt = self._embedder.embed(ids, asked.messages)
        seed = int.from_bytes(hashlib.sha256(f"{self._seed} {key}".encode()).digest()[:4])
        return Walk(key, asked, prompt, Search(prompt.embeds, prompt.moves, self._method, seed), seed)

    def _text(self, asked: Asked, ids: Sequence[int]) -> str:
        """The whole answer, what the prompt begins of it included."""
        written = b"".join((self._pieces[i] if i < len(self._pieces) else None) or b"" for i in ids)
        return asked.continued(written).begun.decode(errors="replace").strip()

    def _rounds(self, config: GenerationConfig, others: dict[str, Any], journal: Journal) -> Rounds:
        prober = Prober(self._model, self._max_batch_tokens, self._temperature, config, others)
        return Rounds(prober, self._judge, self._accept, self._method, self._rules, journal, self._text, self._judge_timeout)

    def _settled(self, generate_kwargs: dict[str, Any], n_prompt: int) -> tuple[GenerationConfig, dict[str, Any]]:
        """How answers are generated, and what else `generate` is given for that."""
        kwargs = dict(generate_kwargs)
        own = self._model.generation_config
        given = copy.deepcopy(kwargs.pop("generation_config", None) or own)
        others = given.update(**kwargs)
        for name in BY_STEP:
            if getattr(given, name, None):
                raise ValueError(f"`{name}` must be left out: an answer that was searched for has none. Ask for sequences alone.")
        if (given.num_return_sequences or 1) > 1:
            raise ValueError(
                f"`num_return_sequences` must be 1, got {given.num_return_sequences}. Repeat the prompt to get several answers."
            )
        streamer = others.pop("streamer", None)
        if streamer is not None and n_prompt == 0:
            raise ValueError("`streamer` must be left out where nothing is said, got one. Use `generate`.")
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(given, name) is None:
                setattr(given, name, getattr(own, name))
        if given.pad_token_id is None:
            given.pad_token_id = self._tokenizer.pad_token_id
        if given.max_new_tokens is None:
            given.max_new_tokens = max(1, (given.max_length or DEFAULT_LENGTH) - n_prompt)
        given.max_length = None
        if given.stop_strings:
            others["tokenizer"] = self._tokenizer
        return given, others

    def _settings(self, generate_kwargs: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
        """What the answers depend on, as JSON can hold it."""
        method = {name: value for name, value in asdict(self._method).items() if name != "optimizer"}
        optimizer = None if self._method.optimizer is None else getattr(self._method.optimizer, "__qualname__", "other")
        others = {
            name: value if isinstance(value, bool | int | float | str) else repr(value) for name, value in generate_kwargs.items()
        }
        return {
            **method,
            "optimizer": optimizer,
            **asdict(self._rules),
            "positions": self._positions,
            "temperature": self._temperature,
            "seed": self._seed,
            "generate": {"max_new_tokens": max_new_tokens, **others},
        }

    def _refusal(self, config: GenerationConfig | None) -> Refusal:
        eos = None if config is None else config.eos_token_id
        return Refusal(self._tokenizer, self._pieces, self._refusal_text, eos[0] if isinstance(eos, list) else eos)

    def _pad(self) -> int:
        found = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        return int(next(i for i in found if i is not None))


def _steered(walk: Walk, messages: list[Message]) -> SteeredPrompt:
    given = walk.given
    return SteeredPrompt(
        messages=messages,
        embeds=given.embeds,
        outcome=walk.outcome or "failed",
        ids=given.ids,
        text=given.text,
        harm=given.harm,
        harm_by_call=walk.harm,
        n_generated=walk.n_generated,
        seconds=round(walk.seconds, 4),
    )


def _output(sequences: Tensor, walks: Sequence[Walk]) -> SteeredOutput:
    said = {"clean": 0, "steered": 1}
    return SteeredOutput(
        sequences=sequences,
        harm=torch.tensor([walk.given.harm if walk.outcome in said else float("nan") for walk in walks]),
        steered=torch.tensor([said.get(walk.outcome or "failed", -1) for walk in walks]),
        oracle_calls=torch.tensor([len(walk.harm) for walk in walks]),
        generated=torch.tensor([walk.n_generated for walk in walks]),
    )
