"""The `autosam2` command: one sub-command a file, imported only when it is called."""

import importlib
import io
import os
import sys
from typing import Any

import click

from nnunet_autosam2.cli.signals import end_in_order
from nnunet_autosam2.errors import AutoSAM2Error
from nnunet_autosam2.support.text import printable

PATH_SHOWN = 500
"""Characters"""
COMMANDS = {
    "doctor": "doctor",
    "weights": "weights",
    "configure": "configure",
    "convert-brats": "convert_brats",
    "predictions-to-brats": "predictions_to_brats",
    "make-phantom": "make_phantom",
    "evaluate": "evaluate",
    "tune-postprocessing": "tune_postprocessing",
    "postprocess": "postprocess",
    "benchmark": "benchmark",
    "report": "report",
    "show": "show",
    "inspect": "inspect",
    "merge-adapters": "merge_adapters",
}


class LazyGroup(click.Group):
    """Imports a sub-command on first use, so that `autosam2 --help` does not load torch and nnU-Net."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"nnunet_autosam2.cli.{COMMANDS[cmd_name]}").command
        command.name = cmd_name  # for what is made of the commands, as their page of the documentation
        return command

    def invoke(self, ctx: click.Context):
        try:
            with end_in_order():
                return super().invoke(ctx)
        except AutoSAM2Error as error:
            raise click.ClickException(str(error)) from error

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """One line for what the system refuses, too: a name that is too long, a full disk below standard output."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal without ±, and text that is none
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            refused = "standard output or a file" if error.filename is None else printable(error.filename, PATH_SHOWN)
            click.echo(f"Error: {refused}: {error.strerror or error}.", err=True)
            try:
                sys.stdout.flush()
            except OSError:  # Python would try once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nnunet-autosam2")
def main() -> None:
    """SAM2 in nnU-Net: prepare data sets, configure, check and look at AutoSAM2 models.

    Training and prediction use nnU-Net's own commands:
    nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerAutoSAM2
    """
