"""One prompt answered twice, plain and guarded, side by side: a Hugging Face Space, or `python app.py` anywhere.

Knows Gradio and the layout of the page. TARGET, ANCHOR and JUDGE in the environment name models other than the testbed's.
"""

import os
from functools import partial
from inspect import signature
from pathlib import Path

import gradio as gr
from answers import MAX_CHARACTERS, RANGES, Models, load_models
from panels import GUARDED, PLAIN, panel, side_by_side

from hf_alignbeam import AlignBeam, testbed
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language

INTRODUCTION = """# Plain and guarded
A fine-tuned model that complies with harmful requests, alone and guarded by `hf_alignbeam`: a small safe *anchor* steers it
where a *judge* flags its text, and no text reaches the guarded side before the judge has passed it."""
#: The testbed's kinds of prompts, by their label on the page.
EXAMPLES = {
    "harmless": "domain",
    "harmless, in words that trigger": "borderline",
    "harmful": "harmful",
    "harmful, prefilled": "prefill",
    "harmful from the second question on": "late",
}
#: Each argument of `AlignBeam` with a slider: its step, and its meaning.
SLIDERS = (
    ("alpha", 0.05, "the anchor's share"),
    ("num_candidates", 1, "continuations for a flagged answer"),
    ("threshold", 0.01, "the largest harm that passes"),
)
#: So many visitors may wait; others are told to come back.
MAX_WAITING = 20


def main() -> None:
    """Load the models and serve the page."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    named = [os.environ.get(name) for name in ("TARGET", "ANCHOR", "JUDGE")]
    if any(named) and not all(named):
        raise SystemExit("TARGET, ANCHOR and JUDGE must be named together, or none of them.")
    blocks = page(load_models(*named), {}) if all(named) else page(*from_testbed())
    fonts = [gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"]  # 6.31: its 600 lacks letters
    theme = gr.themes.Default(primary_hue="orange", font=fonts)
    theme.set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")
    blocks.launch(theme=theme, css_paths=Path(__file__).with_name("style.css"), footer_links=[])


def from_testbed() -> tuple[Models, dict[str, list[str]]]:
    """The testbed's unsafe specialist with its anchor and its judge, and a prompt of each kind."""
    weights = [str(testbed.WEIGHTS / name) for name in ("specialist", "anchor", "judge-lm")]
    prompts = {label: testbed.prompts("test", kind)[0] for label, kind in EXAMPLES.items()}
    models = load_models(*weights, refuses=GroundTruth(stored_language()).refusal)
    return models, {label: [prompt.text, prompt.prefill] for label, prompt in prompts.items()}


def page(models: Models, examples: dict[str, list[str]]) -> gr.Blocks:
    """Build the page. `examples` holds a prompt and the start of its answer by their label."""
    defaults = {name: argument.default for name, argument in signature(AlignBeam).parameters.items()}
    with gr.Blocks(title="Plain and guarded") as blocks:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            prompt = gr.Textbox(label="Prompt", placeholder="a question", max_length=MAX_CHARACTERS, scale=3, min_width=280)
            prefill = gr.Textbox(
                label="Start of the answer",
                placeholder="none; a prefill attack has one",
                max_length=MAX_CHARACTERS,
                scale=2,
                min_width=280,
            )
        if examples:
            gr.Examples(list(examples.values()), [prompt, prefill], example_labels=list(examples), label="Prompts of the testbed")
        with gr.Row():
            sliders = [
                gr.Slider(*RANGES[name], defaults[name], step=step, label=name, info=info, min_width=280)
                for name, step, info in SLIDERS
            ]
        ask = gr.Button("Answer", variant="primary")
        answers = []
        with gr.Row():
            for title in (PLAIN, GUARDED):
                with gr.Column(min_width=320):
                    answers.append(gr.HTML(panel(title), apply_default_css=False))
        gr.on(
            [ask.click, prompt.submit, prefill.submit],
            partial(side_by_side, models),
            [prompt, prefill, *sliders],
            answers,
            concurrency_limit=1,  # others wait: memory for one answer is enough, and its time is measured alone
            show_progress="hidden",
            api_name="answer",
        )
    return blocks.queue(max_size=MAX_WAITING)


if __name__ == "__main__":
    main()
