"""Fit a judge of your own: linear probes of a model's hidden states, from labeled responses and prompts.

    python examples/guides/own_judge.py --file labelled.jsonl --prompts advbench.csv --prompts xstest.csv:odd --to own-judge

Each --file holds a conversation, a response and whether it does harm, in a layout that `alignbeam calibrate` reads: a harmful
response complies, and a harmless one to the same conversation refuses. Each --prompts holds prompts that are known to ask for
harm or not, in a layout that `alignbeam evaluate` reads. With FILE:odd or FILE:even only the rows with an odd or an even number
count. What is written is a folder for `--judge`: a small file beside the model, whose weights stay as they are. With --epochs,
an adapter of the model is fitted to the prompts before, and written, too. With --test and without --file or --prompts, a judge
that is there already is measured.
"""

import argparse
import os
import random
from pathlib import Path

import torch

from hf_alignbeam import ProbeJudge
from hf_alignbeam.chat.conversation_key import conversation_key
from hf_alignbeam.chat.conversations import Conversation
from hf_alignbeam.cli.judges.roc import rates_at
from hf_alignbeam.console import in_words
from hf_alignbeam.evaluation.devices import load_causal, load_padding_tokenizer
from hf_alignbeam.evaluation.files.prompt_source import PromptSpec
from hf_alignbeam.evaluation.prompt_files import LabeledResponse, file_and_rows, read_labeled_responses
from hf_alignbeam.evaluation.prompt_sets import load_prompts
from hf_alignbeam.evaluation.statistics import auc_interval
from hf_alignbeam.hub.judge_loading import load_judge
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.calibration import KnownVerdict, separation

#: So much of a response is read, in characters: its beginning says whether it complies.
MAX_RESPONSE_CHARS = 300
#: Longer prompts are left out.
MAX_PROMPT_CHARS = 600
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read(name: str) -> list[LabeledResponse]:
    """The labeled responses of FILE, FILE:odd or FILE:even."""
    path, rows = file_and_rows(name)
    responses = read_labeled_responses(Path(path))
    return {None: responses, "odd": responses[::2], "even": responses[1::2]}[rows]


def read_requests(names: list[str], limit: int) -> list[tuple[Conversation, bool]]:
    """At most `limit` harmful and as many harmless prompts of each FILE, FILE:odd or FILE:even."""
    requests: list[tuple[Conversation, bool]] = []
    for name in names:
        path, rows = file_and_rows(name)
        for prompts in load_prompts(PromptSpec(path, rows=rows, seed=0, max_chars=MAX_PROMPT_CHARS)):
            requests += [(each.conversation, prompts.harmful) for each in prompts.examples[:limit]]
    return requests


def as_answers(files: list[list[LabeledResponse]], limit: int, rng: random.Random) -> list[tuple[Conversation, str, bool]]:
    """At most `limit` responses of each file that comply with harmful conversations, and as many that refuse."""
    harmful = {conversation_key(each.conversation) for responses in files for each in responses if each.harmful}
    answers: list[tuple[Conversation, str, bool]] = []
    for responses in files:
        for complies in (True, False):
            of_kind = [
                r
                for r in responses
                if conversation_key(r.conversation) in harmful and r.harmful is complies and r.response.strip()
            ]
            drawn = rng.sample(of_kind, min(len(of_kind), limit))
            answers += [(each.conversation, each.response[:MAX_RESPONSE_CHARS], complies) for each in drawn]
    return answers


def learn(args: argparse.Namespace) -> None:
    """Fit a judge and write its folder."""
    requests = read_requests(args.prompts, args.limit)
    answers = as_answers([read(name) for name in args.file], args.limit, random.Random(args.seed))
    n_harmful, n_complying = sum(harmful for _, harmful in requests), sum(complies for *_, complies in answers)
    print(
        f"{len(requests)} prompts, {n_harmful} of them harmful; {len(answers)} responses, {n_complying} of which comply.",
        flush=True,
    )
    model_name = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model  # written beside the probes
    if args.epochs:
        from request_tuning import fine_tune  # only here, as a trainer takes seconds to import

        tokenizer = load_padding_tokenizer(model_name)
        model = fine_tune(model_name, tokenizer, requests, args.epochs, args.seed).to(DEVICE)
    else:
        model, tokenizer = load_causal(model_name, DEVICE)
    ProbeJudge(model, tokenizer, requests=requests, answers=answers).save_pretrained(args.to)


def measure(judge: Judge, name: str, limit: int) -> str:
    """How well a judge ranks the labeled responses of FILE, FILE:odd or FILE:even, and what it flags at .5."""
    labeled = random.Random(0).sample(read(name), min(limit, len(read(name))))
    harm = judge([each.conversation for each in labeled], [each.response for each in labeled]).tolist()
    verdicts = [KnownVerdict(h, each.harmful) for h, each in zip(harm, labeled, strict=True) if h == h]
    n_harmful = sum(each.harmful for each in verdicts)
    counts = f"{Path(name).name}: {len(labeled)} responses, {n_harmful} of them harmful"
    rates = zip((len(verdicts) - n_harmful, n_harmful), ("false alarms", "recall"), rates_at(verdicts, 0.5), strict=True)
    line = f"{counts}: at .5 {', '.join(f'{called} {rate}' for n, called, rate in rates if n)}"
    if n_harmful in (0, len(verdicts)):
        return line
    auc = separation(verdicts)
    low, high = auc_interval(auc, n_harmful, len(verdicts) - n_harmful)
    return f"{line}; AUC {auc:.3f} [{low:.3f}, {high:.3f}]"


def count(text: str) -> int:
    """A number of the command line that must be at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"it must be at least 1, got {text}. Leave it out for the default.")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Coder-0.5B-Instruct", help="an aligned instruction-tuned model")
    parser.add_argument("--file", action="append", default=[], help="labeled responses to learn from; may be repeated")
    parser.add_argument("--prompts", action="append", default=[], help="prompts to learn from; may be repeated")
    parser.add_argument("--test", action="append", default=[], help="labeled responses to measure the judge on; may be repeated")
    parser.add_argument("--to", type=Path, required=True, help="the folder of the judge")
    parser.add_argument("--epochs", type=float, default=0.0, help="how often an adapter sees the prompts; 0 for none")
    parser.add_argument("--limit", type=count, default=200, help="how many prompts or responses of each kind to take from a file")
    parser.add_argument("--test-limit", type=count, default=400, help="how many responses of each --test file are drawn")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.epochs >= 0 or (args.epochs and not args.prompts):
        parser.error(f"--epochs must be 0 or more, and come with --prompts to learn from, got {args.epochs:g}.")
    try:
        for name in args.test:
            read(name)  # an error before anything is fitted
        if args.file or args.prompts:
            learn(args)
        judge = load_judge(str(args.to), device=DEVICE)
        for name in args.test:
            print(measure(judge, name, args.test_limit), flush=True)
    except (OSError, ValueError) as error:
        parser.error(in_words(error))
    print(f"Use it: --judge {args.to}")


if __name__ == "__main__":
    main()
