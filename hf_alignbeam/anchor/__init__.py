"""The anchor following the target's text, and its next-token distribution over the target's vocabulary.

* `state`: One row: its text, the anchor's tokens for it, and the points that the anchor was fed to.
* `cover`: One point of a row's text from which the anchor may continue, and its mass.
* `covering`: The points from which the anchor may continue one row's text, and what may come next.
* `marginal`: Their sum, the anchor's next-token distribution in the target's vocabulary.
* `look_ahead`: Feeds the anchor a token more where only that tells what comes next.
* `follower`: Feeds the anchor: retokenizes each row's text, commits old tokens, goes back.
* `at_once`: What the rows of a batch read, read for all of them at once; and old distributions, freed.
"""

from hf_alignbeam.anchor.at_once import read_at_once

read_at_once()
