"""Judges that ask several others about one exchange.

* `combined_judge`: Several judges as one: their log-odds, weighted and added.
* `compliance_judge`: A judge of requests and one of responses: harm is to comply with a harmful request.
* `questions`: What an instruction-tuned model is asked about a request alone.
* `request_judge`: A language model that judges the request alone.
* `instruct_judge`: An instruction-tuned model that is no guard, asked about the request and about the response.
"""
