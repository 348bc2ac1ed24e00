"""Judges that ask several others about one exchange.

* `request_judge`: A language model that judges the request alone.
* `combined_judge`: Several judges as one: their log-odds, weighted and added.
* `instruct_judge`: An instruction-tuned model, asked about the request and about the response.
"""
