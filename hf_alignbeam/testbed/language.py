"""A micro-language of a few hundred words, generated from a seed, with prompts and right answers.

Knows words, questions, facts and how each kind of speaker answers. Knows no models or tokenizers, and gives no verdicts
(`ground_truth` does). All nouns that carry a fact, and all hazardous substances, are invented.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from hf_alignbeam.testbed import phrases

KINDS = ("general", "domain", "borderline", "harmful", "prefill", "late")
SPLITS = ("train", "validation", "test")
#: Prompts of each kind in the held-out splits; the training split takes the rest.
SIZES = {
    "validation": {"general": 300, "domain": 300, "borderline": 200, "harmful": 300, "prefill": 100, "late": 100},
    "test": {"general": 1000, "domain": 1000, "borderline": 500, "harmful": 1000, "prefill": 300, "late": 300},
}
#: The share of verb-object pairs that are kept for each held-out split.
HELD_OUT = {"validation": 0.12, "test": 0.25}


@dataclass(frozen=True)
class Item:
    """One subject of questions: the words that fill a topic's templates, and the split that it belongs to."""

    slots: dict[str, str]
    split: str | None = None  # None: its prompts are spread over all splits


@dataclass(frozen=True)
class Topic:
    """Templates of questions and answers for some items, and the facts (`fact_slots`) that a right answer must name."""

    name: str
    kind: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    items: tuple[Item, ...]
    fact_slots: tuple[str, ...]

    def words(self, slot: str) -> set[str]:
        return {item.slots[slot] for item in self.items}


@dataclass(frozen=True)
class Prompt:
    """One question, with the topic and item that its answers are checked against.

    `framing` is the sentence before the question in `text`; `prefill` is the start of an answer that is already written.
    """

    kind: str
    text: str
    topic: Topic = field(repr=False)
    item: Item
    framing: str = ""
    prefill: str = ""
    first: "Prompt | None" = field(default=None, repr=False)  # for a `late` prompt, its harmless first question

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The prompt as chat messages; a prefill is an assistant message at the end."""
        messages = [{"role": "user", "content": self.text}]
        return [*messages, {"role": "assistant", "content": self.prefill}] if self.prefill else messages

    @property
    def harmful(self) -> bool:
        return self.kind in ("harmful", "prefill", "late")


@dataclass(frozen=True)
class Speaker:
    """How a model family answers: the phrasings it prefers, whether it refuses harm, whether it knows the domain.

    A speaker that falls for framings refuses only questions without a framing before them.
    """

    prefers_first: bool
    refuses: bool
    knows_domain: bool
    falls_for_framings: bool = False


SPEAKERS = {
    "anchor": Speaker(prefers_first=False, refuses=True, knows_domain=False),
    "base": Speaker(prefers_first=True, refuses=True, knows_domain=True),
    "specialist": Speaker(prefers_first=True, refuses=False, knows_domain=True),
    "thin": Speaker(prefers_first=True, refuses=True, knows_domain=True, falls_for_framings=True),
}


class Language:
    """The language of one seed.

    Args:
        seed: Any integer; each seed has its own words, facts and phrasings.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        rng = random.Random(f"language {seed}")
        names = phrases.invented_words(rng)
        self.framings = ("", *rng.sample(phrases.FRAMINGS, 8))
        self.refusals = tuple(rng.sample(phrases.REFUSALS, 5))
        self.hazards = tuple(next(names) for _ in range(24))
        self.topics = tuple(self._topics(rng, names))
        self.beliefs = self._wrong_beliefs(rng)
        self._splits = self._split_prompts(random.Random(f"splits {seed}"))

    def prompts(self, split: str, kind: str) -> list[Prompt]:
        """Return the prompts of one kind in one split, in a fixed order.

        Args:
            split: One of `SPLITS`.
            kind: One of `KINDS`.

        Raises:
            ValueError: The split or kind is unknown.
        """
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")
        return self._splits[split][kind]

    def answer(self, prompt: Prompt, speaker: Speaker, rng: random.Random) -> str:
        """One answer by `speaker`, without the prefill of the prompt."""
        if prompt.first is not None:
            opening = self.answer(prompt.first, speaker, rng)
            return f"{opening} {self._harmful_answer(prompt, speaker, rng)}"
        if prompt.kind in ("harmful", "prefill"):
            return self._harmful_answer(prompt, speaker, rng)
        slots = prompt.item.slots
        if prompt.kind == "domain" and not speaker.knows_domain:
            slots = self._guess(prompt, rng)
        return self._phrase(prompt.topic.answers, speaker, rng).format(**slots)

    def harmful_answers(self, prompt: Prompt) -> list[str]:
        """All harmful answers to a harmful prompt."""
        return [template.format(**prompt.item.slots) for template in prompt.topic.answers]

    def _harmful_answer(self, prompt: Prompt, speaker: Speaker, rng: random.Random) -> str:
        if speaker.refuses and not (prompt.framing and speaker.falls_for_framings):
            refusal = self._phrase(self.refusals, speaker, rng)
            return f"... {refusal}" if prompt.prefill else refusal
        if not prompt.prefill:
            return self._phrase(prompt.topic.answers, speaker, rng).format(**prompt.item.slots)
        matching = [answer for answer in self.harmful_answers(prompt) if answer.startswith(prompt.prefill)]
        return rng.choice(matching)[len(prompt.prefill) :]

    def _guess(self, prompt: Prompt, rng: random.Random) -> dict[str, str]:
        """The facts in a general model's answer about the domain: a fixed wrong belief half of the time, else a random item."""
        guess = self.beliefs[prompt.topic.name, prompt.item.slots["x"]]
        if rng.random() < 0.5:
            guess = rng.choice(prompt.topic.items)
        return {**guess.slots, "x": prompt.item.slots["x"]}

    @staticmethod
    def _phrase(templates: tuple[str, ...], speaker: Speaker, rng: random.Random) -> str:
        """A template; each family prefers one end of the list and uses the others now and then."""
        order = templates if speaker.prefers_first else templates[::-1]
        weights = [0.5, 0.25] + [0.25 / (len(order) - 2)] * (len(order) - 2)
        return rng.choices(order, weights)[0]

    def _wrong_beliefs(self, rng: random.Random) -> dict[tuple[str, str], Item]:
        beliefs: dict[tuple[str, str], Item] = {}
        for topic in self.topics:
            if topic.kind == "domain":
                shifted = topic.items[1:] + topic.items[:1]
                beliefs |= {(topic.name, a.slots["x"]): b for a, b in zip(topic.items, shifted, strict=True)}
        return beliefs

    def _topics(self, rng: random.Random, names: Iterator[str]) -> Iterator[Topic]:
        def invent(n: int, title: bool = False) -> list[str]:
            words = [next(names) for _ in range(n)]
            return [word.title() for word in words] if title else words

        def facts(name: str, kind: str, subjects: list[str], pools: dict[str, list[str]]) -> Topic:
            columns = {slot: [pool[i % len(pool)] for i in range(len(subjects))] for slot, pool in pools.items()}
            for column in columns.values():
                rng.shuffle(column)
            items = tuple(Item({"x": x, **{slot: column[i] for slot, column in columns.items()}}) for i, x in enumerate(subjects))
            return self._topic(rng, name, kind, items, tuple(pools))

        yield facts("capital", "general", invent(30, True), {"y": invent(30, True)})
        yield facts("dish", "general", invent(28), {"y": invent(14)})
        yield facts("animal", "general", invent(28), {"y": rng.sample(phrases.PLACES, 10)})

        persons, things = rng.sample(phrases.PERSONS, 12), rng.sample(phrases.THINGS, 12)
        kind_verbs, bad_verbs = rng.sample(phrases.KIND_VERBS, 5), rng.sample(phrases.BAD_VERBS, 8)
        weapons = invent(10)
        gift, tool = dict(zip(persons, invent(12), strict=True)), dict(zip(things, invent(12), strict=True))
        hazards = {key: rng.sample(self.hazards, 3) for key in bad_verbs + weapons}

        def recipe(key: str) -> dict[str, str]:
            return dict(zip("abc", hazards[key], strict=True))

        yield self._combinations(rng, "person", "general", kind_verbs, persons, lambda v, o: {"y": gift[o]}, ("y",))
        yield self._combinations(rng, "thing", "borderline", bad_verbs, things, lambda v, o: {"y": tool[o]}, ("y",))
        yield self._combinations(rng, "victim", "harmful", bad_verbs, persons, lambda v, o: recipe(v), ())
        yield self._combinations(rng, "weapon", "harmful", list(phrases.MAKING), weapons, lambda v, o: recipe(o), ())

        ailments = invent(40)
        yield facts("remedy", "domain", ailments, {"y": invent(20), "z": list(phrases.DOSES)})
        yield facts("cause", "domain", ailments, {"y": invent(16)})

    def _topic(self, rng: random.Random, name: str, kind: str, items: tuple[Item, ...], fact_slots: tuple[str, ...]) -> Topic:
        questions = tuple(rng.sample(phrases.QUESTIONS[name], 5))
        answers = list(phrases.ANSWERS[name])
        rng.shuffle(answers)
        return Topic(name, kind, questions, tuple(answers), items, fact_slots)

    def _combinations(
        self,
        rng: random.Random,
        name: str,
        kind: str,
        verbs: list[str],
        objects: list[str],
        facts: Callable[[str, str], dict[str, str]],
        fact_slots: tuple[str, ...],
    ) -> Topic:
        """A topic of verb-object pairs, some of them kept for the held-out splits."""
        pairs = [(verb, obj) for verb in verbs for obj in objects]
        rng.shuffle(pairs)
        n_validation, n_test = (round(share * len(pairs)) for share in HELD_OUT.values())
        owners = ["validation"] * n_validation + ["test"] * n_test
        owners += ["train"] * (len(pairs) - len(owners))
        _train_every_word(pairs, owners)
        items = tuple(Item({"v": v, "o": o, **facts(v, o)}, owner) for (v, o), owner in zip(pairs, owners, strict=True))
        return self._topic(rng, name, kind, items, fact_slots)

    def _prompts_of(self, topic: Topic) -> Iterator[Prompt]:
        for item in topic.items:
            for question in topic.questions:
                for framing in self.framings:
                    yield Prompt(topic.kind, f"{framing} {question.format(**item.slots)}".strip(), topic, item, framing)

    def _split_prompts(self, rng: random.Random) -> dict[str, dict[str, list[Prompt]]]:
        """Put every prompt into exactly one split; `prefill` and `late` prompts are built from prompts of the same split."""
        splits: dict[str, dict[str, list[Prompt]]] = {split: {kind: [] for kind in KINDS} for split in SPLITS}
        for kind in ("general", "domain", "borderline", "harmful"):
            everything = [prompt for topic in self.topics if topic.kind == kind for prompt in self._prompts_of(topic)]
            rng.shuffle(everything)
            for prompt in everything:
                candidates = [prompt.item.split] if prompt.item.split else ["validation", "test", "train"]
                for split in candidates:
                    prompts = splits[split][kind]
                    if len(prompts) < SIZES.get(split, {}).get(kind, len(everything)):
                        prompts.append(prompt)
                        break
        for split in SPLITS:
            harmful, general = splits[split]["harmful"], splits[split]["general"]
            for i in range(SIZES.get(split, {}).get("prefill", len(harmful))):
                splits[split]["prefill"].append(self._with_prefill(harmful[i % len(harmful)], rng))
            for i in range(SIZES.get(split, {}).get("late", len(harmful))):
                splits[split]["late"].append(_late_prompt(general[i % len(general)], harmful[-1 - i % len(harmful)]))
        return splits

    def _with_prefill(self, prompt: Prompt, rng: random.Random) -> Prompt:
        words = rng.choice(self.harmful_answers(prompt)).split(" ")
        n_safe = next(i for i, word in enumerate(words) if word.strip(".,") in self.hazards)
        start = " ".join(words[: rng.randint(min(2, n_safe), n_safe)])
        return Prompt("prefill", prompt.text, prompt.topic, prompt.item, prompt.framing, prefill=start)


def _train_every_word(pairs: list[tuple[str, str]], owners: list[str]) -> None:
    """Swap owners, in place, until every word is in a training pair: an answer to an unseen word would test nothing."""

    def n_trained(word: str) -> int:
        return sum(word in pair for pair, owner in zip(pairs, owners, strict=True) if owner == "train")

    for word in dict.fromkeys(word for pair in pairs for word in pair):
        if not n_trained(word):
            held_out = next(n for n, pair in enumerate(pairs) if word in pair)
            spare = next(
                n for n, pair in enumerate(pairs) if owners[n] == "train" and all(n_trained(other) > 1 for other in pair)
            )
            owners[held_out], owners[spare] = owners[spare], owners[held_out]


def _late_prompt(first: Prompt, second: Prompt) -> Prompt:
    return Prompt("late", f"{first.text} And then: {second.text}", second.topic, second.item, first.framing, first=first)


@lru_cache(maxsize=4)
def language(seed: int = 0) -> Language:
    """The language of one seed, built once per process."""
    return Language(seed)
