"""One answer explained.

* `explained`: How far each token was steered, what the judge read, what was tried.
* `picture`: The same as a picture.
"""
