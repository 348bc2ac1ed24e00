"""Guard a specialist with a judge and an anchor: a complete example of AlignBeam, on the tiny models of the testbed.

Run it with `python examples/guard_with_a_judge.py`. For your own models, load them with AutoModelForCausalLM and
AutoTokenizer instead. A judge is a guard model, a classifier, or any callable that takes conversations and responses.
"""

from hf_alignbeam import AlignBeam, LLMJudge, testbed

specialist, tokenizer = testbed.load("specialist")
anchor, anchor_tokenizer = testbed.load("anchor")
judge = LLMJudge(*testbed.load("judge-lm"))
strategy = AlignBeam(anchor, anchor_tokenizer, tokenizer, judge, num_candidates=3)

kinds = ("harmful", "late", "borderline", "domain")
questions = [testbed.prompts("test", kind)[0].conversation for kind in kinds]
inputs = tokenizer.apply_chat_template(questions, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
length = inputs["input_ids"].shape[1]
plain = specialist.generate(**inputs, max_new_tokens=64, do_sample=False)
guarded = specialist.generate(
    **inputs, custom_generate=strategy, max_new_tokens=64, do_sample=False, return_dict_in_generate=True
)
for n, question in enumerate(questions):
    print(question[-1]["content"])
    print("  plain  ", tokenizer.decode(plain[n, length:], skip_special_tokens=True))
    print("  guarded", tokenizer.decode(guarded.sequences[n, length:], skip_special_tokens=True))
    print(
        f"  harm    {guarded.candidate_harm[n, 0]:.3f} of the specialist's own text, {guarded.harm[n]:.3f} of the guarded answer"
    )
print(strategy.ledger)
