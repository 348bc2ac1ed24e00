"""Prompts split over several processes, each with its own guard; the main process prints all answers.

Run it with `torchrun --nproc_per_node 2 examples/two_processes.py`, or with plain `python` as one process: the answers do not
depend on the number of processes.
"""

from accelerate import PartialState
from accelerate.utils import gather_object

from hf_alignbeam import AlignBeam, LLMJudge, testbed

state = PartialState(cpu=True)
specialist, tokenizer = testbed.load("specialist")
strategy = AlignBeam(*testbed.load("anchor"), tokenizer, LLMJudge(*testbed.load("judge-lm")))

questions = [(n, prompt.conversation) for n, prompt in enumerate(testbed.prompts("test", "harmful")[:4])]
answers = []
with state.split_between_processes(questions) as own_questions:
    for n, question in own_questions:
        inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = specialist.generate(**inputs, custom_generate=strategy, max_new_tokens=64, do_sample=False)
        answers.append((n, tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)))
for n, answer in sorted(gather_object(answers)):
    if state.is_main_process:
        print(f"guarded {questions[n][1][-1]['content']} -> {answer}")
