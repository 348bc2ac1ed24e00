"""Files that users write or have, read the same way at every command; each error names the place and the way out.

* `text`: The text of a file in UTF-8, gzipped or not, and its lines.
* `local_copies`: Local copies of what a recipe names on the Hub, in folders that environment variables name.
* `prompt_source`: Where prompts come from, and which of them are kept: one entry of a recipe.
* `values`: JSON and YAML values without doubled keys and without text that cannot be encoded.
"""
