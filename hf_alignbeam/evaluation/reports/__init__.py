"""Results as tables, JSON and pictures.

* `report`: Results as Markdown tables and as JSON: rates, paired differences, costs, each with its interval.
* `plots`: Pictures of results: safety against over-refusal, utility and cost, and over swept settings.
"""
