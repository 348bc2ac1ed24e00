"""Train a judge of your own: a small language model becomes a classifier of responses, by LoRA, on labeled responses.

    python examples/guides/own_judge.py --base HuggingFaceTB/SmolLM2-135M-Instruct --file responses.csv \
        --target you/medical-llama --prompts advbench.csv --prompts questions.jsonl --to own-judge

Each --file holds a conversation, a response and whether it does harm, in a layout that `alignbeam calibrate` reads. Each file of
--prompts holds prompts that are known to ask for harm or not, in a layout that `alignbeam evaluate` reads: the targets answer
them. An answer to a harmful prompt does harm unless it refuses. With FILE:odd or FILE:even only the rows with an odd or an even
number count. What is written is a folder for `--judge`. With --test and without --file or --prompts, a judge that is there
already is measured.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from hf_alignbeam import ClassifierJudge
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.cli.judges.roc import rates_at
from hf_alignbeam.evaluation.devices import load_causal_on
from hf_alignbeam.evaluation.files.prompt_source import PromptSpec
from hf_alignbeam.evaluation.generation import Responder
from hf_alignbeam.evaluation.prompt_files import LabeledResponse, read_labeled_responses
from hf_alignbeam.evaluation.prompt_sets import PromptSet, load_prompts
from hf_alignbeam.evaluation.scorers import refuses
from hf_alignbeam.evaluation.statistics import auc_interval
from hf_alignbeam.judges.calibration import KnownVerdict, separation

LABELS = {0: "harmless", 1: "harmful"}
#: A response is cut after so many characters at most, drawn anew for each: a judge reads answers as they grow.
MIN_CHARS, MAX_CHARS = 60, 700
#: Longer examples are left out, as they would make a batch slow, and so are longer prompts.
MAX_TOKENS, MAX_PROMPT_CHARS = 320, 600
#: A target's answers to prompts have so many tokens at most.
MAX_NEW_TOKENS = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def read(name: str) -> list[LabeledResponse]:
    """The labeled responses of FILE, FILE:odd or FILE:even."""
    path, _, rows = name.partition(":")
    responses = read_labeled_responses(Path(path))
    return {"": responses, "odd": responses[::2], "even": responses[1::2]}[rows]


def draw(files: list[list[LabeledResponse]], n: int, rng: random.Random) -> list[LabeledResponse]:
    """`n` responses: as many from each file as from any other, if it has them, and as many harmful as harmless ones."""
    drawn = []
    for responses in files:
        for harmful in (False, True):
            of_kind = [each for each in responses if each.harmful is harmful and each.response.strip()]
            drawn += rng.sample(of_kind, min(len(of_kind), n // (2 * len(files))))
    rng.shuffle(drawn)
    return drawn


def read_prompt_sets(name: str) -> list[PromptSet]:
    """The prompts of FILE, FILE:odd or FILE:even: the harmful and the harmless ones."""
    path, _, rows = name.partition(":")
    wanted: Any = rows or None  # PromptSpec refuses anything but odd and even
    return load_prompts(PromptSpec(path, rows=wanted, seed=0, max_chars=MAX_PROMPT_CHARS))


def answer_and_label(targets: list[str], prompt_sets: list[PromptSet], n: int) -> list[LabeledResponse]:
    """Answers of each target to its share of `n` prompts of each set, and a plain refusal of each harmful prompt."""
    labeled = []
    for number, target in enumerate(targets):
        respond = Responder(*load_causal_on(target, DEVICE), max_new_tokens=MAX_NEW_TOKENS)
        for prompts in prompt_sets:
            asked = [each.conversation for each in prompts.examples[:n][number :: len(targets)]]
            for start in range(0, len(asked), 32):
                batch = asked[start : start + 32]
                texts = [response.text for response in respond(batch)]
                pairs = zip(batch, texts, strict=True)
                labeled += [LabeledResponse(c, text, prompts.harmful and not refuses(text), target) for c, text in pairs]
                labeled += [LabeledResponse(c, REFUSAL, False, target) for c in batch if prompts.harmful]
    return labeled


def as_example(judge: ClassifierJudge, each: LabeledResponse, rng: random.Random) -> dict[str, Any]:
    """What the judge will read of a response that is cut somewhere, and its label."""
    text = each.response[: rng.randint(MIN_CHARS, MAX_CHARS)]
    return {"input_ids": judge.render(each.conversation, text), "labels": int(each.harmful)}


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[dict[str, Any]], args: argparse.Namespace
) -> nn.Module:
    """The model with LoRA trained and merged."""
    lora = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules="all-linear", exclude_modules=["score"])
    adapted = get_peft_model(model, lora)
    arguments = TrainingArguments(
        output_dir=str(args.to / "checkpoints"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=8,
        learning_rate=3e-4,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        seed=args.seed,
        train_sampling_strategy="group_by_length",
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
    )

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt", padding_side="right")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    Trainer(adapted, arguments, train_dataset=examples, data_collator=collate).train()
    return adapted.merge_and_unload()


def learn(args: argparse.Namespace) -> None:
    """Train a judge and write its folder."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        args.base, dtype=torch.float32, id2label=LABELS, label2id={name: i for i, name in LABELS.items()}
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    judge = ClassifierJudge(model.eval(), tokenizer, {"harmful": 1.0})
    prompt_sets = [prompts for name in args.prompts for prompts in read_prompt_sets(name)]
    n_files = len(args.file) + len(args.prompts)
    answered = answer_and_label(args.target, prompt_sets, args.limit // (2 * n_files))
    drawn = draw([read(name) for name in args.file], args.limit * len(args.file) // n_files, rng) + answered
    rng.shuffle(drawn)
    print(f"{len(drawn)} responses, {sum(each.harmful for each in drawn)} of them harmful.")
    examples = [example for each in drawn if len((example := as_example(judge, each, rng))["input_ids"]) <= MAX_TOKENS]
    trained = train(model.train(), tokenizer, examples, args)
    trained.eval().to(torch.bfloat16).save_pretrained(args.to)
    tokenizer.save_pretrained(args.to)


def measure(judge: ClassifierJudge, name: str, limit: int) -> str:
    """How well a judge ranks the labeled responses of FILE, FILE:odd or FILE:even, and what it flags at .5."""
    labeled = random.Random(0).sample(read(name), min(limit, len(read(name))))
    harm = [h for n in range(0, len(labeled), 16) for h in judged(judge, labeled[n : n + 16])]
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


def judged(judge: ClassifierJudge, labeled: list[LabeledResponse]) -> list[float]:
    """The harm of each response."""
    return list(judge([each.conversation for each in labeled], [each.response for each in labeled]).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a small language model")
    parser.add_argument("--file", action="append", default=[], help="labeled responses to learn from; may be repeated")
    parser.add_argument("--target", action="append", default=[], help="a model whose answers to --prompts are learned from")
    parser.add_argument("--prompts", action="append", default=[], help="prompts for the targets; may be repeated")
    parser.add_argument("--test", action="append", default=[], help="labeled responses to measure the judge on; may be repeated")
    parser.add_argument("--to", type=Path, required=True, help="the folder of the judge")
    parser.add_argument("--limit", type=int, default=1600, help="how many responses to learn from")
    parser.add_argument("--test-limit", type=int, default=400, help="how many responses of each --test file are drawn")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.target) != bool(args.prompts):
        parser.error("--target and --prompts must be given together.")
    if args.file or args.prompts:
        learn(args)
    judge = ClassifierJudge(
        AutoModelForSequenceClassification.from_pretrained(args.to).eval(),
        AutoTokenizer.from_pretrained(args.to),
        {"harmful": 1.0},
    )
    for name in args.test:
        print(measure(judge, name, args.test_limit), flush=True)
    print(f"Use it: --judge {args.to} --judge-labels harmful=1")


if __name__ == "__main__":
    main()
