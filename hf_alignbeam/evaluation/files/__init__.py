"""Files that users write, read the same way at every command; each error names the place and the way out.

* `text`: The text of a file in UTF-8, gzipped or not, and its lines.
* `values`: JSON and YAML values without doubled keys and without text that cannot be encoded.
"""
