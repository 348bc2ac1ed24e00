"""Commands run as a user types them."""

from typer.testing import CliRunner

from hf_alignbeam.cli.app import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
