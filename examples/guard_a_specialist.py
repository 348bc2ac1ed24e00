"""Guard a specialist with a safe anchor of another family: a complete example, on the tiny models of the testbed.

Run it with `python examples/guard_a_specialist.py`. For your own models, load them with AutoModelForCausalLM and
AutoTokenizer instead.
"""

from hf_alignbeam import AnchorLogitsProcessor, testbed

specialist, tokenizer = testbed.load("specialist")
anchor, anchor_tokenizer = testbed.load("anchor")
guard = AnchorLogitsProcessor(anchor, anchor_tokenizer, tokenizer)

questions = [testbed.prompts("test", kind)[0].conversation for kind in ("harmful", "borderline", "domain")]
inputs = tokenizer.apply_chat_template(questions, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
length = inputs["input_ids"].shape[1]
for name, processors in (("plain", []), ("guarded", [guard])):
    output = specialist.generate(**inputs, logits_processor=processors, max_new_tokens=64, do_sample=False)
    for question, answer in zip(questions, tokenizer.batch_decode(output[:, length:], skip_special_tokens=True), strict=True):
        print(f"{name:8} {question[-1]['content']} -> {answer}")
print(guard.ledger)
