"""A file's worth of prompts answered by as many processes as there are, each guarded, the answers in one place.

Run it with `torchrun --nproc_per_node 2 examples/two_processes.py`; alone, it is one process. Answers do not depend on how many.
"""

from accelerate import PartialState
from accelerate.utils import gather_object

from hf_alignbeam import AlignBeam, LLMJudge, testbed

state = PartialState(cpu=True)
specialist, tokenizer = testbed.load("specialist")
strategy = AlignBeam(*testbed.load("anchor"), tokenizer, LLMJudge(*testbed.load("judge-lm")))

questions = [(n, prompt.conversation) for n, prompt in enumerate(testbed.prompts("test", "harmful")[:4])]
answers = []
with state.split_between_processes(questions) as mine:
    for n, question in mine:
        inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = specialist.generate(**inputs, custom_generate=strategy, max_new_tokens=64, do_sample=False)
        answers.append((n, tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)))
for n, answer in sorted(gather_object(answers)):
    if state.is_main_process:
        print(f"guarded {questions[n][1][-1]['content']} -> {answer}")
