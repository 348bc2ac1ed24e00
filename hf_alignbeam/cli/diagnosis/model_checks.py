"""Checks of one model with its tokenizer, one check a function.

Knows models and tokenizers that are loaded. Knows no second model and no terminal.
"""

import torch

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.chat.format_learning import learn_format
from hf_alignbeam.chat.prompt_reader import PromptReader
from hf_alignbeam.chat.target_prompts import render_target_prompt
from hf_alignbeam.chat.template_parser import TemplateParser
from hf_alignbeam.chat.templates import default_template, encode_prompt, encode_with_one_bos
from hf_alignbeam.cli.diagnosis.examined import QUESTIONS, CheckResult, ExaminedModel
from hf_alignbeam.embedding_search.embeddings import Embedder
from hf_alignbeam.inference.branching_cache import choose_engine
from hf_alignbeam.inference.engines import RecomputeEngine
from hf_alignbeam.tokenization.backends import WORD_START
from hf_alignbeam.tokenization.losses import losses
from hf_alignbeam.tokenization.vocabulary import Vocabulary, token_bytes

#: Plain text must be likelier than random tokens by this many nats a token. So many random texts are compared.
MIN_GAIN, N_RANDOM_TEXTS = 1.0, 8


def decoder(examined: ExaminedModel) -> CheckResult:
    """Whether the model is a decoder, in evaluation mode."""
    name = type(examined.model).__name__
    if examined.model.config.is_encoder_decoder:
        return CheckResult("red", f"{name} is an encoder-decoder. Use a causal language model.")
    if examined.model.training:
        return CheckResult("red", f"{name} is in training mode. Call `eval()`.")
    return CheckResult("green", name)


def finite_logits(examined: ExaminedModel) -> CheckResult:
    """Whether the model's logits are finite."""
    logits = examined.logits(examined.encode(QUESTIONS[0]))
    if not torch.isfinite(logits).all():
        return CheckResult("red", "NaN or infinite logits for a plain question. Load it in another dtype, or load other weights.")
    return CheckResult("green", "finite logits for a plain question")


def dtypes(examined: ExaminedModel) -> CheckResult:
    """Whether all weights are in memory, in one dtype that suits their device."""
    weights = list(examined.model.parameters())
    floating = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights if weight.is_floating_point()})
    packed = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights if not weight.is_floating_point()})
    devices = sorted({weight.device.type for weight in weights})
    summary = f"{', '.join([*floating, *packed])} on {', '.join(devices)}"
    if len(floating) > 1:
        text = f"{summary}: weights of several dtypes. Load it with `dtype=` unless that is meant (quantized layers)."
        return CheckResult("yellow", text)
    if floating == ["float16"] and "cpu" in devices:
        text = f"{summary}: half precision on a CPU is slow, and overflows. Load it with `dtype=torch.float32`."
        return CheckResult("yellow", text)
    if "meta" in devices:
        return CheckResult("yellow", f"{summary}: weights are offloaded, so that every step waits for them.")
    return CheckResult("green", summary)


def byte_completeness(examined: ExaminedModel) -> CheckResult:
    """Whether the tokenizer can encode every text without loss."""
    vocabulary = Vocabulary(examined.tokenizer)
    kind = type(examined.tokenizer).__name__
    lost = [loss for loss in losses(vocabulary) if WORD_START not in loss]  # a character that only tokenizers write
    if lost:
        text = f"{kind} does not keep every text: {'; '.join(lost)}. Text that it loses cannot be steered."
        return CheckResult("yellow", text)
    return CheckResult("green", f"{kind}, {len(vocabulary)} tokens, every byte and every text kept")


def logits_width(examined: ExaminedModel) -> CheckResult:
    """Whether the logits are as wide as the vocabulary requires."""
    n_logits = examined.logits(examined.encode(QUESTIONS[0])).shape[-1]
    n_tokens, widths = len(examined.tokenizer), Vocabulary(examined.tokenizer).widths
    if n_logits not in widths:
        text = f"{n_logits} logits for {n_tokens} tokens: the tokenizer is another model's. Load both from one place."
        return CheckResult("red", text)
    if n_logits != n_tokens:
        return CheckResult("green", f"{n_logits} logits for {n_tokens} tokens: padded, and taken care of")
    return CheckResult("green", f"{n_logits} logits for as many tokens")


def belongs_together(examined: ExaminedModel) -> CheckResult:
    """Whether the model finds plain text likelier than random tokens: with another model's tokenizer, all text is noise."""
    generator = torch.Generator().manual_seed(0)
    tokens = token_bytes(examined.tokenizer)
    ordinary = torch.tensor([i for i, token in enumerate(tokens) if token])
    gains = []
    for question in QUESTIONS:
        ids = torch.tensor(examined.encode(question))
        is_text = torch.tensor([tokens[i] is not None for i in ids.tolist()])
        n_text = int(is_text.sum())
        random_texts = [ids.masked_scatter(is_text, _draw(ordinary, n_text, generator)) for _ in range(N_RANDOM_TEXTS)]
        random_logp = sum(_mean_logp(examined, text, is_text) for text in random_texts) / N_RANDOM_TEXTS
        gains.append(_mean_logp(examined, ids, is_text) - random_logp)
    gain = sum(gains) / len(gains)
    unit = f"({gain:+.1f} a token, natural logarithm)"
    if gain < MIN_GAIN:
        text = f"plain text is hardly likelier to it than random tokens {unit}: another model's tokenizer, or no training."
        return CheckResult("red", text)
    return CheckResult("green", f"plain text is likelier to it than random tokens {unit}")


def template(examined: ExaminedModel) -> CheckResult:
    """Whether conversations can be rendered, and for the target, parsed back from the rendered prompt."""
    tokenizer = examined.tokenizer
    if tokenizer.chat_template is None:
        target, anchor = "Pass `template=` or `conversations=`.", "An aligned model refuses best in its own template."
        return CheckResult("yellow", f"no chat template: it reads plain text. {target if examined.name == 'target' else anchor}")
    messages: list[Message] = [{"role": "user", "content": QUESTIONS[1]}]
    if examined.name == "anchor":
        encode_prompt(tokenizer, token_bytes(tokenizer), messages)
        return CheckResult("green", "a question is rendered up to its answer")
    parsed = TemplateParser(tokenizer).parse(encode_with_one_bos(tokenizer, render_target_prompt(tokenizer, messages)))
    if parsed is None or parsed.messages != messages:
        result = "nothing" if parsed is None else repr(parsed.messages)
        return CheckResult("red", f"a rendered question reads back as {result}. Pass `conversations=` with every call.")
    return CheckResult("green", "a rendered question reads back as it was asked")


def double_bos(examined: ExaminedModel) -> CheckResult:
    """Whether the usual way to tokenize a rendered prompt doubles its BOS."""
    bos = examined.tokenizer.bos_token_id
    if bos is None or examined.tokenizer.chat_template is None:
        return CheckResult("green", "no BOS, or no template that could write one")
    rendered = render_target_prompt(examined.tokenizer, [{"role": "user", "content": QUESTIONS[0]}])
    if examined.tokenizer(rendered).input_ids[:2] == [bos, bos]:
        text = "the template and the tokenizer both write a BOS: tokenize rendered prompts with `add_special_tokens=False`."
        return CheckResult("yellow", text)
    return CheckResult("green", "one BOS at most")


def system_role(examined: ExaminedModel) -> CheckResult:
    """Whether the template takes a system message."""
    chat_template = default_template(examined.tokenizer)
    if chat_template is None:
        return CheckResult("green", "no template")
    learned = learn_format(examined.tokenizer, token_bytes(examined.tokenizer), chat_template)
    if learned is None:
        return CheckResult("red", "the template cannot be followed: the text that it puts around messages cannot be learned.")
    if learned.around_system is None:
        return CheckResult("yellow", "the template has no system role: a system message is put before the first question.")
    return CheckResult("green", "system messages have their place")


def end_of_answers(examined: ExaminedModel) -> CheckResult:
    """Whether the tokenizer, the generation config and the template agree on how an answer ends."""
    tokenizer, config = examined.tokenizer, examined.model.generation_config
    eos = config.eos_token_id if config is not None else None
    configured = set(eos if isinstance(eos, list) else [eos]) - {None}
    of_tokenizer = {tokenizer.eos_token_id} - {None}
    if not configured and not of_tokenizer:
        return CheckResult("red", "neither the tokenizer nor generation_config.json names an EOS: no answer ends.")
    of_template = PromptReader(tokenizer).eos_ids - of_tokenizer if tokenizer.chat_template is not None else frozenset()
    if examined.name == "target" and not configured:
        return CheckResult("red", "generation_config.json names no EOS, so that `generate` never stops. Set `eos_token_id`.")
    if unknown := sorted(of_template - configured):
        names = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in unknown)
        return CheckResult("yellow", f"the template ends answers with {names}, which generation_config.json does not name.")
    names = ", ".join(str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(configured | of_tokenizer))
    return CheckResult("green", f"EOS: {names}")


def cache(examined: ExaminedModel) -> CheckResult:
    """Whether the model can be read from a key-value cache, which only an anchor needs."""
    if choose_engine(examined.model, token_bytes(examined.tokenizer)) is not RecomputeEngine:
        return CheckResult("green", "a key-value cache that gives the same logits as no cache")
    if examined.name == "target":
        return CheckResult("yellow", "recurrent or windowless state: AlignBeam recomputes a flagged answer, once.")
    text = "recurrent state, or a cache that gives other logits than no cache: it is recomputed at every step, slowly."
    return CheckResult("yellow", text)


def embeddings(examined: ExaminedModel) -> CheckResult:
    """Whether prompt embeddings can be searched for the target."""
    try:
        Embedder(examined.model, examined.tokenizer, token_bytes(examined.tokenizer), "user")
    except ValueError as error:
        return CheckResult("yellow", f"EmbeddingSteerer does not take it: {error}")
    return CheckResult("green", "EmbeddingSteerer takes it")


def _draw(ids: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    return ids[torch.randint(len(ids), (n,), generator=generator)]


def _mean_logp(examined: ExaminedModel, ids: torch.Tensor, counted: torch.Tensor) -> float:
    """The mean log-probability of the counted tokens of a text."""
    logp = examined.logits(ids.tolist()).log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0]
    return float(logp[counted[1:]].mean())
