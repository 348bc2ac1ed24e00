"""What holds and what it costs on one device: `python -m hf_alignbeam.benchmarks.gpu`.

* `laws`: The laws of the package in a device's dtype, with the testbed's models.
* `costs`: Times, throughput and memory with models of realistic shape.
"""
