"""What the system refuses is one line, whatever the command is."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nnunet_autosam2.cli.main import COMMANDS, main

COMMAND_LINE = "from nnunet_autosam2.cli.main import main; main()"
LONG = "x" * 300
ARGUMENTS = {
    "weights": ("verify", LONG), "configure": (LONG, "--name", "new"), "convert-brats": (LONG, "-d", "7", "-n", "New"),
    "predictions-to-brats": (LONG, "out"), "make-phantom": (LONG,), "evaluate": (LONG,), "report": (LONG,),
    "show": ("case", "-m", LONG), "inspect": (LONG,), "merge-adapters": (LONG, "out"),
    "benchmark": ("-d", "7", "--trainers", "nnUNetTrainer", "-o", LONG, "--viewer-cases", "0"),
    "tune-postprocessing": (LONG,), "postprocess": ("in", "out", "--settings", LONG),
    "doctor": (f"sam2_checkpoint={LONG}",),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_that_is_too_long(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    for folder in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path))
    result = CliRunner().invoke(main, [name, *ARGUMENTS[name]])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exc_info
    if name != "doctor":  # which goes on
        assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["n" * 201, "ä" * 101])
def test_a_dataset_name_that_is_too_long(tmp_path: Path, name: str):
    (tmp_path / "source").mkdir()
    result = CliRunner().invoke(
        main, ["convert-brats", f"{tmp_path / 'source'}", "-d", "7", "-n", name, "--output", f"{tmp_path}"]
    )
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    expected = f"Dataset name {name[:20]}… is not possible: it has {len(name.encode())} bytes, and 200 is the most"
    assert line == f"Error: {expected} (letters beyond ASCII have 2 to 4 each)."
    assert list(tmp_path.iterdir()) == [tmp_path / "source"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", [("weights", "list"), ("--help",), ("--version",), ("configure", "--help")])
def test_a_full_disk_below_standard_output(tmp_path: Path, arguments: tuple[str, ...]):
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-c", COMMAND_LINE, *arguments],
            cwd=tmp_path,  # where no sources are that are not installed
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert run.returncode == 1
    assert run.stderr == "Error: standard output or a file: No space left on device.\n"


@pytest.mark.parametrize("named", ["~nobody-of-this-name/x", "~nobody-of-this-name", LONG, "/" + "x/" * 3000])
def test_weights_named_by_an_impossible_path(named: str):
    environment = {"AUTOSAM2_SAM2_WEIGHTS": named}
    listed = CliRunner().invoke(main, ["weights", "list"], env=environment)
    assert listed.exit_code == 0, listed.output
    named = f"AUTOSAM2_SAM2_WEIGHTS={named}"
    assert f"not in {named}"[:140] in listed.output  # of what is long, the start is shown
    for arguments in (["weights", "where"], ["weights", "verify"], ["doctor"]):
        result = CliRunner().invoke(main, arguments, env=environment)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit), result.exc_info
        assert f"{named}: "[:900] in result.output


def every_command() -> Iterator[tuple[str, click.Command]]:
    for name in main.list_commands(click.Context(main)):
        command = main.get_command(click.Context(main), name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {own}", inner) for own, inner in command.commands.items())
        else:
            yield name, command


@pytest.mark.parametrize(
    ("name", "command"), [*every_command()], ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_help_ends_with_an_example_that_can_be_read(name: str, command: click.Command):
    example = command.epilog.removeprefix("Example: ")
    assert example != command.epilog
    for each in example.split("autosam2 ")[1:]:
        assert each.startswith(name)
        arguments = shlex.split(each.removeprefix(name).split(",")[0])
        command.make_context(name, arguments, resilient_parsing=True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_as_the_documentation_has_it(shell: str):
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    assert f"_AUTOSAM2_COMPLETE={shell}_source autosam2" in page
    told = CliRunner().invoke(main, [], prog_name="autosam2", env={"_AUTOSAM2_COMPLETE": f"{shell}_source"})
    assert "_autosam2_completion" in told.stdout, told.output
    words = {"COMP_WORDS": "autosam2 weights ver", "COMP_CWORD": "ver" if shell == "fish" else "2"}
    completed = CliRunner().invoke(
        main, [], prog_name="autosam2", env={**words, "_AUTOSAM2_COMPLETE": f"{shell}_complete"}
    )
    assert "verify" in completed.stdout, completed.output
