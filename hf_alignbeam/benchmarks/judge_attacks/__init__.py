"""Texts that a judge may read differently from a person: what passes by the disguise alone, and what looking behind it costs.

* `attacks`: Disguises of a text, each a function of a text.
* `measurements`: The harm that passes, harmless texts that change sides, and the time it takes.
"""
