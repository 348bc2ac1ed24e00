"""Results kept in files for later processes. What cannot be read as it was written is computed anew.

Knows numbers and text as JSON. Does not know what they mean.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from hf_alignbeam.build_cache.contents import digest
from hf_alignbeam.utils.whole_files import replace_bytes

#: Names the folder, in place of `alignbeam` in Hugging Face's own; where it is set to nothing, nothing is kept.
FOLDER_VARIABLE = "HF_ALIGNBEAM_CACHE"
#: Files of another format of ours are not read, nor those of other releases: these may encode or compute otherwise.
FORMAT = (2, *map(version, ("tokenizers", "transformers", "torch")))


def kept_on_disk(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """Return what `compute` returned for the same key, in this process or an earlier one.

    Args:
        kind: What is kept, as a word.
        key: A digest of everything that the result depends on, releases aside.
        compute: Returns numbers, strings, lists and None, as JSON knows them; None alone is not kept.
    """
    folder = os.environ.get(FOLDER_VARIABLE, os.path.join(HF_HOME, "alignbeam"))
    if not folder:
        return compute()
    name = digest(FORMAT, kind, key)
    path = Path(folder, f"{kind}-{name[:32]}.json")
    with suppress(OSError, ValueError):
        checksum, _, data = path.read_bytes().partition(b"\n")
        if checksum.decode() == digest(name, data):
            return json.loads(data)
    value = compute()
    if value is not None:
        data = json.dumps(value, ensure_ascii=False).encode()
        with suppress(OSError):  # what cannot be kept is computed again
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(path, digest(name, data).encode() + b"\n" + data)
    return value
