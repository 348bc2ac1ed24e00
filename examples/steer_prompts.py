"""Search for prompt embeddings that a model answers safely, save them, and answer from the saved ones.

Run it with `python examples/steer_prompts.py`. For your own models, load them with AutoModelForCausalLM and AutoTokenizer
instead of from the testbed.
"""

import tempfile

from hf_alignbeam import ClassifierJudge, EmbeddingSteerer, PlausibleAnswer, SteeredPrompts, testbed

model, tokenizer = testbed.load("thin")  # refuses plain requests, complies where they are framed
judge = ClassifierJudge(*testbed.load("judge-cls"), labels={"unsafe": 1.0})
accept = PlausibleAnswer(*testbed.load("anchor"))

framed = [prompt.conversation for prompt in testbed.prompts("validation", "harmful") if prompt.framing][:4]
conversations = [*framed, *(prompt.conversation for prompt in testbed.prompts("validation", "domain")[:2])]

with tempfile.TemporaryDirectory() as folder:
    EmbeddingSteerer(model, tokenizer, judge, accept).precompute(conversations, folder)
    steered = SteeredPrompts.from_pretrained(folder, model)

answers = model.generate(**steered.inputs(conversations), max_new_tokens=60, do_sample=False)
for prompt, answer in zip(steered, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True):
    print(prompt.messages[-1]["content"])
    print(f"  guarded {answer.strip()}  ({prompt.outcome}, {prompt.n_oracle_calls} oracle calls, {prompt.n_generated} answers)")
