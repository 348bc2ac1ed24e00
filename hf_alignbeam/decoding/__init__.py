"""Decoding: a strategy for `generate` that returns only text that a judge has passed. `AlignBeam` is the public class.

* `policy`: Policy: when an answer is judged, which verdicts pass, and which candidate is chosen.
* `records`: Answers, traces and outputs, as plain records.
* `target_rows`: TargetRows: the target's inputs and KV cache for some rows; branches and crops them.
* `row_batch`: RowBatch: rows of answers that share the target's forwards.
* `row_writer`: RowWriter: one decoding step: read, score, draw and write.
* `candidates`: CandidateGenerator: writes the steered candidates of flagged answers.
* `fallback`: Fallback: how an answer ends if no candidate passes.
* `judged_answers`: JudgedAnswers: judges texts, commits tokens to answers and emits them.
* `rollback`: Rollback: where a flagged answer rolls back to, and which text replaces the rest.
* `judged_decoding`: JudgedDecoding: the loop of one call: write, judge, commit, roll back.
* `strategy`: AlignBeam: the strategy that users hand to `generate`.
"""
