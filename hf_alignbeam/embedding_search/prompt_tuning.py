"""A universal prefix: virtual tokens, fitted to the answers that a search found for some prompts, for use with any prompt.

Knows embeddings of prompts with answers to them, and the files of a prompt-tuning adapter. Knows no judge and no search.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from hf_alignbeam.embedding_search.embeddings import token_embeddings
from hf_alignbeam.utils.checks import check_whole_number, is_number
from hf_alignbeam.utils.whole_files import replace_together

#: The label of a position that the loss ignores.
IGNORED = -100
#: The initial noise of each virtual token, as a share of the embedding's norm, so that no two are equal.
INITIAL_NOISE = 0.1


@dataclass(frozen=True)
class TrainingPair:
    """A prompt's embeddings (T, D), and the ids of the answer that the prefix is fitted to."""

    embeds: Tensor
    answer: list[int]


@dataclass(frozen=True)
class FittingConfig:
    """How a prefix is fitted: the arguments of `EmbeddingSteerer.fit_prefix` of the same names."""

    n_tokens: int
    n_steps: int
    learning_rate: float
    batch_size: int

    def __post_init__(self) -> None:
        for name in ("n_tokens", "n_steps", "batch_size"):
            check_whole_number(name, getattr(self, name), 1, "Leave it out for the default.")
        if not is_number(self.learning_rate) or not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be above 0, got {self.learning_rate!r}. Use 0.02 as a start.")


@dataclass(frozen=True)
class Prefix:
    """A fitted prefix.

    Attributes:
        embeds: (n, D) the virtual tokens' embeddings, float32.
        loss: Of each step, the mean negative log-probability (natural logarithm) of an answer's token.
        n_steered: The number of prompts fitted to an answer that the search found.
        n_clean: The number of prompts fitted to the model's own answer.
    """

    embeds: Tensor = field(repr=False)
    loss: list[float] = field(repr=False)
    n_steered: int
    n_clean: int

    def save_pretrained(self, folder: str | Path, model: PreTrainedModel) -> None:
        """Write a PROMPT_TUNING adapter that `peft.PeftModel.from_pretrained(model, folder)` loads.

        Args:
            folder: The adapter's folder, created if need be.
            model: The model that the prefix was fitted for.

        Raises:
            OSError: A file cannot be written. An adapter that the folder held before is as it was.
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
        tensors = save({"prompt_embeddings": self.embeds.cpu().contiguous()}, {"format": "pt"})
        text = json.dumps(config, indent=2) + "\n"
        replace_together([(folder / "adapter_model.safetensors", tensors), (folder / "adapter_config.json", text.encode())])


@torch.enable_grad()
def fit(
    model: PreTrainedModel,
    pairs: Sequence[TrainingPair],
    first_id: int,
    config: FittingConfig,
    seed: int,
    after_step: Callable[[float], None] = lambda loss: None,
) -> tuple[Tensor, list[float]]:
    """Fit virtual tokens to answers by Adam (prompt tuning, arXiv 2104.08691). The model does not change.

    Args:
        model: The model.
        pairs: Prompts with the answers to fit to.
        first_id: The id whose embedding every virtual token starts from, plus a little noise.
        config: How many tokens are fitted, and how. The learning rate is in units of the first embedding's norm.
        seed: The seed of noise and batches. Pairs are drawn with replacement.
        after_step: Called with the loss of each step.

    Returns:
        (n, D) float32, and the loss of each step.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    start = token_embeddings(model, [first_id] * config.n_tokens).detach().float()  # (n, D)
    unit = float(start.norm(dim=-1).mean())
    noise = torch.randn(start.shape, generator=generator).to(start) / start.shape[-1] ** 0.5
    tokens = torch.nn.Parameter(start / unit + INITIAL_NOISE * noise)
    optimizer = torch.optim.Adam([tokens], lr=config.learning_rate)
    losses = []
    for _ in range(config.n_steps):
        drawn = torch.randint(len(pairs), (config.batch_size,), generator=generator).tolist()
        loss = _loss(model, tokens * unit, [pairs[n] for n in drawn])
        (tokens.grad,) = torch.autograd.grad(loss, [tokens])
        optimizer.step()
        losses.append(loss.item())
        after_step(losses[-1])
    return (tokens * unit).detach(), losses


def _loss(model: PreTrainedModel, prefix: Tensor, pairs: Sequence[TrainingPair]) -> Tensor:
    """The mean negative log-probability of an answer's token after the prefix and its prompt."""
    rows, labels = [], []
    for pair in pairs:
        prompt = torch.cat([prefix.to(pair.embeds), pair.embeds])  # (n + T, D)
        rows.append(torch.cat([prompt, token_embeddings(model, pair.answer).detach()]))
        labels.append(torch.tensor([IGNORED] * len(prompt) + pair.answer, device=prompt.device))
    width = max(map(len, rows))
    batch = torch.stack([pad(row, (0, 0, 0, width - len(row))) for row in rows])  # (B, width, D)
    targets = torch.stack([pad(row, (0, width - len(row)), value=IGNORED) for row in labels])  # (B, width)
    mask = torch.stack([pad(torch.ones_like(row), (0, width - len(row))) for row in labels])
    logits = model(inputs_embeds=batch, attention_mask=mask).logits.float()
    return cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)
