"""Judges at the command line: the options that every command has for its judge, `alignbeam calibrate` and `alignbeam tune`.

* `options`: The options that say how a judge is asked, added to a command in one line.
* `settings`: The settings that these options describe, with the files that they name.
* `roc`: The thresholds of a judge on labeled responses, as tables and as a picture.
* `calibrate`: `alignbeam calibrate` finds a judge's threshold from labeled responses.
* `tune`: `alignbeam tune` finds a strategy's threshold from a target's own answers.
* `commands`: The options of both commands.
"""
