"""The texts that a judge reads of one answer: the answer itself, a folded copy, and the parts of faked turns.

* `confusables`: Letters that look like ASCII letters, a table from Unicode's data.
* `lookalikes`: Letters that stand for letters of another script.
* `marked_letters`: Whether more letters of a text have marks than in any language.
* `styled_letters`: Letters in another style, and under marks.
* `bidi`: A text in the order in which it is shown.
* `folding`: A text as a person sees it.
* `turns`: Faked turns in a text: their parts, and delimiters and lines that cannot be faked.
* `readings`: The readings of an exchange, and the worst verdict of them.
* `lossless`: Whether a tokenizer's ids hold the text that they were made of.
"""
