"""Errors that a user can cause and mend. Each message names what is at fault and what to do about it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nnunet_autosam2.support.text import printable, printable_lines

NAMES_SHOWN = 5


class AutoSAM2Error(Exception):
    """Base of every error that the command line shows as one line, without a traceback.

    A message names what it found in files. Its text is made fit for a terminal here, wherever it was put together.
    """

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class ConfigurationError(AutoSAM2Error):
    """A key, a value or a combination of values in the configuration is not possible."""


class WeightsError(AutoSAM2Error):
    """SAM2 weights are missing or do not fit the model."""


class DatasetError(AutoSAM2Error):
    """A file or folder of a data set cannot be used."""


class InstallationError(AutoSAM2Error):
    """This package, or what it needs, is not installed so that it works."""


class TrainingError(AutoSAM2Error):
    """A training cannot go on; what it has written stays good."""


class OutOfMemoryError(AutoSAM2Error, RuntimeError):
    """The smallest possible piece of work does not fit into memory.

    A RuntimeError, as torch's is: nnU-Net's predictor then keeps its results on the CPU and tries again.
    """


def listed(items: Sequence[object]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(map(printable, items[:NAMES_SHOWN]))
    return shown if len(items) <= NAMES_SHOWN else f"{shown} and {len(items) - NAMES_SHOWN} more"


def require_distinct(items: Sequence[object], what: str) -> None:
    """
    Raises:
        ConfigurationError: one of them is there twice, as in "--folds: 0 is named twice: name it once."
    """
    if twice := [item for item in dict.fromkeys(items) if items.count(item) > 1]:
        raise ConfigurationError(f"{what}: {listed(twice)} is named twice: name it once.")


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Where no command line of ours is around, as in nnU-Net's: one line on stderr and exit code 1."""
    try:
        yield
    except AutoSAM2Error as error:
        raise SystemExit(f"Error: {error}") from error
