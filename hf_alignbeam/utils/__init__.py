"""Helpers that know nothing about models, text or judges.

* `method_cache`: Keeps a method's results with its object, so that they are freed together.
* `streaming`: Gives a streamer the prompt, and ends the stream even if generation fails.
* `timed_calls`: Runs calls with a time limit in a thread that lives as long as it answers.
* `random_stream`: Lets a callable draw from the global generators without changing what others draw.
* `hub_push`: Pushes a folder to the Hub in a single commit.
* `jsonl_log`: Logs of JSON records that stay readable when the writing process is killed or the disk is full.
* `whole_files`: Files that are replaced as a whole.
"""
