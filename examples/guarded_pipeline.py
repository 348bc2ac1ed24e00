"""A guarded chat in a transformers pipeline, on the tiny models of the testbed.

Run it with `python examples/guarded_pipeline.py`. A pipeline samples by default; the guard works with and without sampling.
"""

from transformers import pipeline

from hf_alignbeam import AlignBeam, LLMJudge, testbed

specialist, tokenizer = testbed.load("specialist")
strategy = AlignBeam(*testbed.load("anchor"), tokenizer, LLMJudge(*testbed.load("judge-lm")))
chat = pipeline("text-generation", model=specialist, tokenizer=tokenizer)

chats = [testbed.prompts("test", kind)[0].conversation for kind in ("harmful", "domain")]
settings = {"max_new_tokens": 64, "do_sample": False, "return_full_text": False}
plain = chat(chats, **settings)
guarded = chat(chats, custom_generate=strategy, **settings)
for messages, (before,), (after,) in zip(chats, plain, guarded, strict=True):
    print(messages[-1]["content"])
    print("  plain  ", before["generated_text"])
    print("  guarded", after["generated_text"])
