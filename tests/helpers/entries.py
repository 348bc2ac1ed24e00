"""What tests of Hub entries share: processes without the package, criteria that know rows."""

import json

from transformers import (
    StoppingCriteria,
)

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_alignbeam":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""


def said_by(done):
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Do you wish" not in done.stdout
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SAID")).removeprefix("SAID "))


class Tracked(StoppingCriteria):
    """Stops at a text, its verdicts kept by the rows of the batch that it was made for: the criterion of lm_eval 0.4.13."""

    def __init__(self, sequence, tokenizer, n_prompt, n_rows):
        self.sequence, self.tokenizer, self.n_prompt = sequence, tokenizer, n_prompt
        self.n_back = len(tokenizer.encode(sequence, add_special_tokens=False)) + 2
        self.done_tracker = [False] * n_rows

    def __call__(self, input_ids, scores, **kwargs):
        said = self.tokenizer.batch_decode(input_ids[:, self.n_prompt :][:, -self.n_back :])
        for row, done in enumerate(self.done_tracker):
            self.done_tracker[row] = done or self.sequence in said[row]
        return False not in self.done_tracker
