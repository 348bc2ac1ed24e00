"""Fine-tune a model by LoRA until its hidden states tell harmful from harmless requests: a step of `own_judge.py`.

A classifier's head on the last token learns with the adapter, and is thrown away: what is kept is a causal model with an
adapter, whose states the probes of a judge read.
"""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from hf_alignbeam.chat.conversations import Conversation, as_messages
from hf_alignbeam.judges.probes.known_probes import REQUESTS
from hf_alignbeam.judges.profiles.general import SAFE_UNSAFE
from hf_alignbeam.judges.rendering import GuardPrompt

#: The adapter's settings.
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
LEARNING_RATE = 2e-4
BATCH_SIZE = 16
#: Longer requests are cut at their start.
MAX_TOKENS = 200


def fine_tune(name: str, tokenizer: Any, requests: Sequence[tuple[Conversation, bool]], epochs: float, seed: int) -> Any:
    """A model with an adapter that was fitted to requests, and to those of the package.

    Args:
        name: A folder or Hub id of an aligned model.
        tokenizer: Its tokenizer.
        requests: Conversations, and whether they ask for harm.
        epochs: How often each is seen.
        seed: Of the adapter's first weights, and of the order.

    Raises:
        ValueError: The layers of the model and of its classifier have other names.
    """
    prompt = GuardPrompt(tokenizer, SAFE_UNSAFE)
    known = [*((each.request, each.label) for each in REQUESTS), *requests]
    rows = [
        {"input_ids": prompt.request_ids(as_messages(asked))[-MAX_TOKENS:], "labels": int(harmful)} for asked, harmful in known
    ]
    torch.manual_seed(seed)
    classifier = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2, dtype="auto")
    classifier.config.pad_token_id = tokenizer.pad_token_id
    adapted: Any = get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", **LORA))
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # the head has the checkpoint's dtype, in which small steps are lost
            parameter.data = parameter.data.float()
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH_SIZE,
            train_sampling_strategy="group_by_length",
            learning_rate=LEARNING_RATE,
            warmup_steps=10,
            weight_decay=0.01,
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            seed=seed,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
        )
        collator = DataCollatorWithPadding(tokenizer)
        Trainer(adapted, arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer).train()
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    commit = getattr(model.config, "_commit_hash", None)  # of a model of the Hub: a copy that is protected with it names it
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", revision=commit, **LORA))
    learned = {key: value for key, value in get_peft_model_state_dict(adapted).items() if ".score" not in key}
    if set_peft_model_state_dict(model, learned).unexpected_keys:  # else what was learned would be left out silently
        raise ValueError(f"`name` must be a model whose classifier has the same layers, got {name!r}. Fine-tune another one.")
    return model.eval()
