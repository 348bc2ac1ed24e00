"""`python -m hf_alignbeam`, and `torchrun -m hf_alignbeam`: the command of the same name as the package."""

from hf_alignbeam.cli.app import app

if __name__ == "__main__":
    app(prog_name="alignbeam")
