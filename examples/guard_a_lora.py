"""A LoRA that lost its base's refusals, guarded by that base: no second model is loaded.

Run it with `python examples/guard_a_lora.py`. For your own adapter: `PeftModel.from_pretrained(base, "you/unsafe-lora")`.
"""

from hf_alignbeam import AnchorLogitsProcessor, testbed

adapted, tokenizer = testbed.load("specialist-lora")
guard = AnchorLogitsProcessor("base", tokenizer, tokenizer, model=adapted)

questions = [testbed.prompts("test", kind)[0].conversation for kind in ("harmful", "domain")]
inputs = tokenizer.apply_chat_template(questions, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
length = inputs["input_ids"].shape[1]
for name, processors in (("plain", []), ("guarded", [guard])):
    output = adapted.generate(**inputs, logits_processor=processors, max_new_tokens=64, do_sample=False)
    for question, answer in zip(questions, tokenizer.batch_decode(output[:, length:], skip_special_tokens=True), strict=True):
        print(f"{name:8} {question[-1]['content']} -> {answer}")
