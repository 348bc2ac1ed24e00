"""Systems held against prompts: answered, scored and reported.

* `answer_store`: What was paid for already, batch by batch on the disk, by any number of processes, so that a killed run goe...
* `devices`: Models and devices by their names, and which of how many processes this one is.
* `generation`: What models say to conversations, through `generate`, and what that takes.
* `prompt_files`: Files of prompts that a user names at the terminal.
* `recipe`: What is to be measured: models, systems and prompt sets, read from YAML and checked.
* `prompt_sets`: Prompts to be answered, from files in their published layouts, the Hub or the testbed.
* `scorers`: What an answer is: a refusal, harm, right. By a list of strings, by a judge, by the grammar of the testbed.
* `statistics`: Shares, paired differences and ratios, each with its 95 % interval. Knows numbers only.
* `systems`: What can be held against each other: each kind of system, made of a target, an anchor and a judge, answers conve...
* `runner`: The work of a recipe: every system's answers to every batch of prompts, shared out over processes, none done twice.
* `results`: Every answer with its verdicts, gathered by target, system and prompt set: what a report is made of.
* `reports/`: Results as text and pictures.
"""
