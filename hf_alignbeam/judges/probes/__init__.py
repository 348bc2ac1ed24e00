"""Linear probes of an instruction-tuned model's hidden states, as a judge.

* `harmful_requests`: Requests that are known to ask for harm.
* `harmless_requests`: Requests that are known to ask for none.
* `everyday_requests`: Everyday requests, which ask for none.
* `other_messages`: Longer messages of both kinds, and remarks.
* `known_answers`: Answers of which it is known whether they refuse.
* `linear_probe`: A linear probe, and how it is fitted.
* `hidden_states`: A model's hidden states, of conversations and of responses to them.
* `known_probes`: The two probes of a model, and the requests and answers that they are fitted on.
* `saved_probes`: A file of probes.
* `probe_judge`: A model whose hidden states say what it is asked for, and whether it complies.
"""
