"""A universal prefix: a few virtual tokens that make a model give, to any prompt, the answers that a search found for some.

Knows prompts' embeddings with answers to them, and the files of a prompt-tuning adapter. Knows no judge and no search.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from hf_alignbeam.embedding_search.embeddings import embedded

#: What is no token's label.
IGNORED = -100
#: The noise, as a share of the first embedding, that tells virtual tokens apart at first.
FIRST_NOISE = 0.1


@dataclass(frozen=True)
class TrainingPair:
    """A prompt's embeddings (T, D), and the ids of the answer that is to be given to it."""

    embeds: Tensor
    answer: list[int]


@dataclass(frozen=True)
class Prefix:
    """A fitted prefix.

    Attributes:
        embeds: (n, D) virtual tokens, float32.
        loss: By step, the mean negative log-probability (natural logarithm) of an answer's token.
        n_steered: How many prompts it was fitted to that needed another answer.
        n_clean: How many whose answer was to stay as it is.
    """

    embeds: Tensor = field(repr=False)
    loss: list[float] = field(repr=False)
    n_steered: int
    n_clean: int

    def save_pretrained(self, folder: str | Path, model: PreTrainedModel) -> None:
        """Write a PROMPT_TUNING adapter that `peft.PeftModel.from_pretrained(model, folder)` loads.

        Args:
            folder: Where to.
            model: The model that the prefix was fitted to.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text: Any = model.config.get_text_config()
        config = {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": model.config.name_or_path,
            "num_virtual_tokens": len(self.embeds),
            "token_dim": self.embeds.shape[-1],
            "num_transformer_submodules": 1,
            "num_attention_heads": text.num_attention_heads,
            "num_layers": text.num_hidden_layers,
            "inference_mode": True,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({"prompt_embeddings": self.embeds.cpu().contiguous()}, folder / "adapter_model.safetensors", {"format": "pt"})


@torch.enable_grad()
def fit(
    model: PreTrainedModel,
    lessons: Sequence[TrainingPair],
    first: int,
    n_tokens: int,
    n_steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    after_step: Callable[[float], None] = lambda loss: None,
) -> tuple[Tensor, list[float]]:
    """Fit virtual tokens by Adam to the answers; nothing of the model changes (prompt tuning, arXiv 2104.08691).

    Args:
        model: The model.
        lessons: What is to be answered to what.
        first: The id whose embedding every virtual token starts from, with a little noise.
        n_tokens: n of them.
        n_steps: Steps of the optimiser.
        learning_rate: In units of the first embedding's norm.
        batch_size: Lessons a step, drawn with replacement.
        seed: Of the noise and of the batches.
        after_step: Is told of each step's loss.

    Returns:
        (n, D) float32, and the loss by step.
    """
    generator = torch.Generator().manual_seed(seed)
    start = embedded(model, [first] * n_tokens).detach().float()  # (n, D)
    unit = float(start.norm(dim=-1).mean())
    noise = torch.randn(start.shape, generator=generator).to(start) / start.shape[-1] ** 0.5
    tokens = torch.nn.Parameter(start / unit + FIRST_NOISE * noise)
    optimizer = torch.optim.Adam([tokens], lr=learning_rate)
    losses = []
    for _ in range(n_steps):
        chosen = torch.randint(len(lessons), (batch_size,), generator=generator).tolist()
        loss = _loss(model, tokens * unit, [lessons[n] for n in chosen])
        (tokens.grad,) = torch.autograd.grad(loss, [tokens])
        optimizer.step()
        losses.append(loss.item())
        after_step(losses[-1])
    return (tokens * unit).detach(), losses


def _loss(model: PreTrainedModel, prefix: Tensor, lessons: Sequence[TrainingPair]) -> Tensor:
    """The mean negative log-probability of an answer's token after the prefix and its prompt."""
    rows, labels = [], []
    for lesson in lessons:
        prompt = torch.cat([prefix.to(lesson.embeds), lesson.embeds])  # (n + T, D)
        rows.append(torch.cat([prompt, embedded(model, lesson.answer).detach()]))
        labels.append(torch.tensor([IGNORED] * len(prompt) + lesson.answer, device=prompt.device))
    width = max(map(len, rows))
    batch = torch.stack([pad(row, (0, 0, 0, width - len(row))) for row in rows])  # (B, width, D)
    wanted = torch.stack([pad(each, (0, width - len(each)), value=IGNORED) for each in labels])  # (B, width)
    mask = torch.stack([pad(torch.ones_like(each), (0, width - len(each))) for each in labels])
    logits = model(inputs_embeds=batch, attention_mask=mask).logits.float()
    return cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=IGNORED)
