"""A file of probes: a judge that weighs some hundred kilobytes beside the model whose states it reads.

Knows the file. Knows no model and no Hub.
"""

from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file

from hf_alignbeam.judges.probes.known_probes import KnownProbes
from hf_alignbeam.judges.probes.linear_probe import LinearProbe

#: The file's name in a folder or a repository, which needs no other one.
PROBES_FILE = "judge_probes.safetensors"


class SavedProbes(NamedTuple):
    """Probes, and the model that they were fitted on.

    Attributes:
        probes: The probes.
        model: The model's folder or Hub id; None for the adapter in the folder of the file.
        revision: Its commit, where it has one of its own.
    """

    probes: KnownProbes
    model: str | None
    revision: str | None


def save_probes(saved: SavedProbes, folder: Path) -> None:
    """Write `PROBES_FILE` into a folder, which may be new.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request, response, separation = saved.probes
    metadata = {
        "model": saved.model or "",
        "revision": saved.revision or "",
        "biases": f"{request.bias!r} {response.bias!r}",
        "separation": repr(separation),
    }
    save_file({"request": request.weight, "response": response.weight}, folder / PROBES_FILE, metadata)


def read_probes(path: Path) -> SavedProbes:
    """What `save_probes` wrote.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no probes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            biases = [float(bias) for bias in metadata["biases"].split()]
            request, response = (LinearProbe(file.get_tensor(n), b) for n, b in zip(("request", "response"), biases, strict=True))
        known = KnownProbes(request, response, float(metadata["separation"]))
        return SavedProbes(known, metadata["model"] or None, metadata["revision"] or None)
    except OSError:
        raise
    except Exception as error:  # safetensors has an error of its own for a broken file
        raise ValueError(f"{path} must hold the probes of a judge, but does not: {error}. Write it anew.") from error
