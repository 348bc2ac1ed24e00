"""Helpers that know nothing about models, text or judges.

* `checks`: Checks of arguments that many classes share.
* `generation_modes`: Refuses modes of `generate` that a guard does not know.
* `method_cache`: Keeps a method's results with its object, so that they are freed together.
* `streaming`: Gives a streamer the prompt, and ends the stream even if generation fails.
* `stopping_criteria`: Stopping criteria without state, which work with any rows of a batch.
* `timed_calls`: Runs calls with a time limit in a thread that lives as long as it answers.
* `random_stream`: Lets a callable draw from the global generators without changing what others draw.
* `written_files`: Folders that a command writes: another's file is never replaced, and a folder appears whole.
* `hub_push`: Pushes a folder to the Hub in a single commit.
* `jsonl_log`: Logs of JSON records that stay readable when the writing process is killed or the disk is full.
* `whole_files`: Files that are replaced as a whole.
"""
