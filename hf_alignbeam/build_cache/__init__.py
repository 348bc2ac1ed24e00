"""What building a guard computes for tokenizers and models, kept for the next guard and the next process.

A folder of the Hub lacks this package: it keeps whole guards in a process, and nothing on disk.

* `contents`: Digests of all that a tokenizer's or a model's behavior depends on.
* `disk`: Results kept in files for later processes.
* `keepers`: Which results are kept, for how long, and under which digest.
"""
