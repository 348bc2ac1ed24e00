"""The laws and the costs on one card: `python -m hf_alignbeam.benchmarks.gpu`.

* `laws`: The laws of the package on a device and in a dtype, with the testbed's models.
* `costs`: Times, throughput and memory with models of realistic shape.
"""
