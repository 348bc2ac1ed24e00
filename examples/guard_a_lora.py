"""A LoRA that lost its base's refusals, guarded by that base: no second model is loaded.

Run it with `python examples/guard_a_lora.py`. For your own adapter: `PeftModel.from_pretrained(base, "you/unsafe-lora")`.
"""

from hf_alignbeam import AnchorLogitsProcessor, testbed

adapted, tokenizer = testbed.load("specialist-lora")
guard = AnchorLogitsProcessor("base", tokenizer, tokenizer, model=adapted)

for kind in ("harmful", "domain"):
    question = testbed.prompts("test", kind)[0].conversation
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    for name, processors in (("plain", []), ("guarded", [guard])):
        output = adapted.generate(**inputs, logits_processor=processors, max_new_tokens=64, do_sample=False)
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"{name:8} {question[-1]['content']} -> {answer}")
