"""A moderation endpoint as judge: any server that offers OpenAI's `/v1/moderations`.

Run it with `OPENAI_BASE_URL=https://moderation.example/v1 OPENAI_API_KEY=... python examples/remote_judge.py`
(`pip install "hf-alignbeam[openai]"`). If the endpoint does not answer, every prompt is refused.
"""

from hf_alignbeam import AlignBeam, testbed
from hf_alignbeam.judges.remote.moderation_api import ModerationJudge

specialist, tokenizer = testbed.load("specialist")
judge = ModerationJudge(timeout=5.0, max_retries=1, max_concurrency=4)
strategy = AlignBeam(*testbed.load("anchor"), tokenizer, judge)

questions = [testbed.prompts("test", kind)[0].conversation for kind in ("harmful", "domain")]
inputs = tokenizer.apply_chat_template(questions, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
output = specialist.generate(**inputs, custom_generate=strategy, max_new_tokens=64, do_sample=False, return_dict_in_generate=True)
answers = tokenizer.batch_decode(output.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
for question, answer, harm in zip(questions, answers, output.harm.tolist(), strict=True):
    print(f"guarded {question[-1]['content']} -> {answer} (harm {harm:.3f})")
