import click
import pytest
from click.testing import CliRunner

from nnunet_autosam2.cli.benchmark import ManyValues


@click.command(cls=ManyValues)
@click.option("--names", multiple=True)
@click.option("-f", "--folds", multiple=True, type=int)
@click.option("--one")
@click.option("--flag", is_flag=True)
@click.argument("rest", nargs=-1)
def command(names, folds, one, flag, rest):
    click.echo(repr((names, folds, one, flag, rest)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--names a b --folds 0 1 2", (("a", "b"), (0, 1, 2), None, False, ())),
        ("--names a --names b -f 1 -f 0", (("a", "b"), (1, 0), None, False, ())),
        ("--names a b c --flag --one x -f 3", (("a", "b", "c"), (3,), "x", True, ())),
        ("--one x y --names=a", (("a",), (), "x", False, ("y",))),
    ],
)
def test_an_option_takes_many_values(arguments, expected):
    result = CliRunner().invoke(command, arguments.split())
    assert result.output.strip() == repr(expected)


def test_a_wrong_value_is_named():
    result = CliRunner().invoke(command, ["--folds", "0", "one"])
    assert result.exit_code == 2
    assert "'one' is not a valid integer" in result.output
