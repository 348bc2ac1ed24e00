"""Compares systems on prompt sets: answers prompts, scores the answers, reports rates and costs.

* `answer_store`: Batches of records on the disk, written by any number of processes, from which a killed run resumes.
* `devices`: Loads models and judges onto devices by their names, and knows which of several processes this one is.
* `generation`: Answers of a model to a batch of conversations, through `generate`.
* `files/`: The text and the values of files that users write, without what would be misread.
* `prompt_files`: Reads files of prompts: tables, JSON, JSON lines and text, gzipped or not.
* `recipe`: A recipe: which models, systems and prompt sets to measure, read from YAML and checked.
* `prompt_sets`: Prompt sets from files in their published layouts, the Hub or the testbed.
* `scorers`: Scores answers for refusal, harm and correctness, by strings, a judge or the testbed's grammar.
* `statistics`: Rates, paired differences, ratios and areas under ROC curves, each with its 95 % interval.
* `systems`: The kinds of systems: each is built from a target, an anchor and a judge, and answers.
* `runner`: Runs a recipe: every system answers every batch of prompts, shared out over processes.
* `results`: Every answer with its verdicts, grouped by target, system and prompt set.
* `reports/`: Results as tables, JSON and pictures.
"""
