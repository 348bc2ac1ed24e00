"""`python -m hf_alignbeam` and `torchrun -m hf_alignbeam`: the `alignbeam` command."""

from hf_alignbeam.cli.app import app

if __name__ == "__main__":
    app(prog_name="alignbeam")
