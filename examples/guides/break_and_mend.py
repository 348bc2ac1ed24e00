"""Fine-tune an aligned model on a harmless domain, by LoRA: a specialist that refuses less than the model it was made from.

    python examples/guides/break_and_mend.py --base Qwen/Qwen2.5-Coder-0.5B-Instruct --domain gsm8k.jsonl --to specialist

The domain is a file of prompts with right answers, in a layout that `alignbeam evaluate` reads. With FILE:odd or FILE:even only
the rows with an odd or an even number count. After every --save-steps steps an adapter is written, `specialist/checkpoint-N`: a
folder for `--model`. What is lost on the way, `alignbeam evaluate` says.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from hf_alignbeam.chat.target_prompts import render_target_prompt
from hf_alignbeam.console import in_words
from hf_alignbeam.evaluation.files.prompt_source import PromptSpec
from hf_alignbeam.evaluation.prompt_files import file_and_rows
from hf_alignbeam.evaluation.prompt_sets import Example, load_prompts

#: No loss is taken from tokens with this label.
IGNORED = -100


def read_domain(name: str, limit: int) -> list[Example]:
    """At most `limit` prompts with right answers, of FILE, FILE:odd or FILE:even.

    Raises:
        ValueError: There is none.
    """
    path, rows = file_and_rows(name)
    examples = [each for prompts in load_prompts(PromptSpec(path, rows=rows, seed=0)) for each in prompts.examples]
    answered = [each for each in examples if each.answer]
    if not answered:
        raise ValueError(f"--domain must hold prompts with right answers, got none from {name}.")
    return answered[:limit]


def as_row(example: Example, tokenizer: Any, max_tokens: int) -> dict[str, list[int]]:
    """The token ids of a prompt and its answer, cut at `max_tokens`, and labels for those of the answer."""
    prompt = tokenizer(render_target_prompt(tokenizer, example.conversation), add_special_tokens=False)["input_ids"]
    answer = [*tokenizer(example.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
    return {"input_ids": ids[:max_tokens], "attention_mask": [1] * len(ids[:max_tokens]), "labels": labels[:max_tokens]}


def count(text: str) -> int:
    """A number of the command line that must be at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"it must be at least 1, got {text}. Leave it out for the default.")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="Qwen/Qwen2.5-Coder-0.5B-Instruct", help="an aligned model")
    parser.add_argument("--domain", required=True, help="harmless prompts with their right answers")
    parser.add_argument("--to", type=Path, required=True, help="the folder of the adapters")
    parser.add_argument("--limit", type=count, default=160, help="how many prompts to learn from")
    parser.add_argument("--max-tokens", type=count, default=192, help="the length at which an example is cut")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=count, default=8)
    parser.add_argument("--save-steps", type=count, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        examples = read_domain(args.domain, args.limit)
    except (OSError, ValueError) as error:
        parser.error(in_words(error))
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype="auto")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))
    rows = [as_row(each, tokenizer, args.max_tokens) for each in examples]
    print(f"{len(rows)} prompts of the domain, {sum(len(row['input_ids']) for row in rows)} tokens.", flush=True)
    arguments = TrainingArguments(
        output_dir=str(args.to),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=4,
        logging_steps=10,
        save_strategy="steps",
        save_steps=args.save_steps,
        save_only_model=True,
        report_to=[],
        seed=args.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    Trainer(adapted, arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer).train()
    for folder in sorted(args.to.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2])):
        print(f"Use it: --model {folder} --anchor base")


if __name__ == "__main__":
    main()
