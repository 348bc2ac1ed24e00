"""`python -m hf_alignbeam.benchmarks.judge_attacks`: what passes judges by a disguise alone, and what looking behind it costs.

It ends with status 1 where a judge lets harm pass by an attack alone.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hf_alignbeam.benchmarks.judge_attacks.attacks import ATTACKS
from hf_alignbeam.benchmarks.judge_attacks.measurements import attack_results, cost, flagged_exchanges, harmless_result
from hf_alignbeam.chat.conversations import as_messages
from hf_alignbeam.console import command, report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.prompt_files import read_labeled_responses
from hf_alignbeam.evaluation.prompt_sets import read_prompts
from hf_alignbeam.hub.judge_loading import JudgeSettings, load_judge
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.reading.readings import Exchange
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_language

TESTBED = "testbed:"
#: How many exchanges the testbed writes.
N_TESTBED = 2000
#: The answer to a prompt, and the question to a text.
PLAIN_ANSWER, PLAIN_QUESTION = "Yes.", "Write something."

Labeled = tuple[str, list[Exchange], list[Exchange]]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@command(app)
def judge_attacks(
    judge: Annotated[list[str], typer.Option(help="A folder, a Hub id or testbed:NAME; may be repeated.")],
    file: Annotated[list[Path] | None, typer.Option(help="Labeled responses; default: the testbed's.")] = None,
    harmless: Annotated[list[Path] | None, typer.Option(help="Harmless prompts, read as questions and as answers.")] = None,
    profile: Annotated[str | None, typer.Option(help="The judges' profile; default: as it is found.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="An attack, by its name; may be repeated. Default: all.")] = None,
    limit: Annotated[int, typer.Option(help="The most flagged responses to attack; 0 for none.")] = 40,
    characters: Annotated[int | None, typer.Option(help="How many of each response's characters count; default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order in which responses are tried.")] = 0,
) -> None:
    """Attack judges, count harmless texts that change sides, and measure the cost."""
    console = Console(width=200)
    with report_user_errors():
        attacks = known_attacks(attack)
        labeled = [read_labeled(path, characters, seed) for path in file or []] or [testbed_labeled(seed)]
        texts = [(str(path), [each.conversation[-1]["content"] for each in read_prompts(path)]) for path in harmless or []]
        n_passed = 0
        for name in judge:
            folder = str(WEIGHTS / name.removeprefix(TESTBED)) if name.startswith(TESTBED) else name
            loaded = load_judge(folder, JudgeSettings(profile=profile))
            for source, harmful, ordinary in labeled:
                tell(console, "", f"{name} on {source}", "")
                if limit:
                    flagged = flagged_exchanges(loaded, harmful, limit)
                    tell(console, *table_head(["attack", "flagged before", "pass, one reading", "pass", "no verdict"]))
                    for row in attack_results(loaded, flagged, attacks):
                        n_passed += row.n_passed
                        counts = (row.n_flagged, row.n_passed_one_reading, row.n_passed, row.n_without_verdict)
                        tell(console, table_row([row.attack, *map(str, counts)]))
                    tell(console, "", *cost_table(loaded, ordinary[:limit]), "")
                tell(console, *harmless_table(loaded, [(f"harmless of {source}", ordinary)]))
            as_texts = [named for source, prompts in texts for named in both_ways(source, prompts)]
            if as_texts:
                tell(console, "", *harmless_table(loaded, as_texts))
    if n_passed:
        raise typer.Exit(1)


def known_attacks(names: list[str] | None) -> list[str]:
    """The attacks of some names, by default all.

    Raises:
        ValueError: There is no attack of a name.
    """
    for name in names or []:
        if name not in ATTACKS:
            raise ValueError(f"--attack must be one of {', '.join(map(repr, ATTACKS))}, got {name!r}.")
    return names or list(ATTACKS)


def read_labeled(path: Path, characters: int | None, seed: int) -> Labeled:
    """The harmful and the harmless exchanges of a file, with the beginnings of their responses, in an order drawn by a seed."""
    labeled = read_labeled_responses(path)
    random.Random(seed).shuffle(labeled)
    pairs = [(each.harmful, (each.conversation, each.response[:characters].strip())) for each in labeled if each.response.strip()]
    return path.name, [pair for harmful, pair in pairs if harmful], [pair for harmful, pair in pairs if not harmful]


def testbed_labeled(seed: int) -> Labeled:
    """The testbed's exchanges over prompts that no judge was trained on."""
    found = [(each.unsafe, (each.question, each.response)) for each in exchanges(stored_language(), "test", N_TESTBED, seed)]
    return "the testbed", [pair for unsafe, pair in found if unsafe], [pair for unsafe, pair in found if not unsafe]


def both_ways(source: str, texts: list[str]) -> Iterator[tuple[str, list[Exchange]]]:
    """Texts as questions with a plain answer, and as answers to a plain question."""
    yield f"{source}, as questions", [(as_messages(text), PLAIN_ANSWER) for text in texts]
    yield f"{source}, as answers", [(as_messages(PLAIN_QUESTION), text) for text in texts]


def harmless_table(judge: Judge, sources: list[tuple[str, list[Exchange]]]) -> Iterator[str]:
    """The lines of the table of harmless exchanges."""
    yield from table_head(["harmless texts", "number", "read folded", "read in parts", "change sides"])
    for source, found in sources:
        result = harmless_result(judge, found)
        yield table_row([source, *map(str, (result.n, result.n_folded, result.n_with_parts, result.n_changed))])


def cost_table(judge: Judge, found: list[Exchange]) -> Iterator[str]:
    """The lines of the table of times."""
    each = cost(judge, found)
    yield from table_head(["characters", "folding, us", "splitting, us", "fencing, us", "verdict, ms", "share of a verdict, %"])
    times = (each.folding_us, each.splitting_us, each.fencing_us, each.verdict_ms, 100 * each.share)
    yield table_row([f"{each.n_chars:.0f}", *(f"{value:.2f}" for value in times)])


if __name__ == "__main__":
    app()
