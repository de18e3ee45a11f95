"""`autosam2 weights`: which weights of SAM2 there are, where they are, and whether they fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nnunet_autosam2.architectures.sam2 import weights
from nnunet_autosam2.config import SAM2_MODELS, AutoSAM2Config, SAM2Model, parse_assignments
from nnunet_autosam2.errors import WeightsError
from nnunet_autosam2.support.columns import aligned

if TYPE_CHECKING:
    from torch import nn

DEFAULT = AutoSAM2Config().sam2_model


@click.group(short_help="List, get, verify and find the weights of SAM2.")
def command() -> None:
    """List, get, verify and find the weights of SAM2."""


@command.command("list", epilog="Example: autosam2 weights list")
def list_models() -> None:
    """List the official models.

    With file and repository on the model hub, parameters, and where the file is on this machine. Uses no network.
    """
    header = ("model", "file", "repository", "parameters", "where")
    click.echo(aligned([header, *(_row(model) for model in SAM2_MODELS)]))


@command.command(epilog="Example: autosam2 weights get sam2.1-hiera-small")
@click.argument("model", default=DEFAULT)
def get(model: str) -> None:
    """Download the file of an official model.

    It goes into the model hub's local cache, where a training finds it; its path is printed. MODEL is a name from
    `autosam2 weights list`, by default the one that a training uses by default.
    """
    config = AutoSAM2Config.from_dict({"sam2_model": model})
    path = weights.cached(model)
    if path:
        click.echo(f"{model} is in the {weights.ORIGINS['cache']} already.", err=True)
    click.echo(path or weights.download(config))


@command.command(epilog="Example: autosam2 weights verify MedSAM2.pt")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--model", metavar="NAME", help="Model to check against. Default: the one that FILE looks like.")
def verify(file: Path | None, model: str | None) -> None:
    """Check that a training can start from a file.

    Every name, shape and kind of number in FILE, an official or fine-tuned checkpoint of SAM2, has to be that of the
    model. Without FILE, what `autosam2 weights where` finds is checked against NAME or the default model.
    """
    if file is None or model:
        config = AutoSAM2Config.from_dict({"sam2_model": model or DEFAULT})
        model = config.sam2_model
        file = file or weights.find_file(config)[0]
    state, remark = weights.read_layout(file)
    model = model or weights.recognise(state)
    if model is None:
        raise WeightsError(
            f"{file} is refused: found {len(state)} entries without the image encoder of an official model. "
            f"Expected one of {', '.join(SAM2_MODELS)}."
        )
    from nnunet_autosam2.architectures.sam2.model import SAM2

    image_size, problem = AutoSAM2Config().sam2_image_size, None
    with_memory = any(_is_memory(name) for name in state)
    sam2 = SAM2.build(model, image_size, memory=with_memory)
    try:
        weights.load_into(sam2, state, file)
    except WeightsError as error:
        if not with_memory:
            raise
        problem, sam2 = error, SAM2.build(model, image_size)
        weights.load_into(sam2, state, file)
    if problem:
        memory = f"It serves propagation=linear, and not memory: {problem}"
    elif with_memory:
        only = sum(parameter.numel() for name, parameter in sam2.named_parameters() if _is_memory(name))
        memory = f"{only:,} of them are SAM2's memory for videos, which only propagation=memory uses."
    else:
        memory = "SAM2's memory for videos is not in it, which propagation=memory needs."
    click.echo(f"{file} fits {model}: {len(state)} tensors, {_parameters(sam2):,} parameters.")
    if remark:
        click.echo(f"It is not quite in SAM2's layout: {remark}.")
    click.echo(memory)


@command.command(epilog="Example: autosam2 weights where sam2_checkpoint=auto")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--model", metavar="NAME", help="Same as sam2_model=NAME.")
def where(assignments: tuple[str, ...], model: str | None) -> None:
    """Print the file that a training would use.

    And, on stderr, how it was found. KEY=VALUE changes the configuration, such as sam2_checkpoint=FILE. Exit code 1
    if there is no file.
    """
    changes = parse_assignments(assignments)
    config = AutoSAM2Config().updated({**changes, **({"sam2_model": model} if model else {})})
    path, origin = weights.find_file(config)
    click.echo(path)
    click.echo(f"From: {origin}", err=True)


def _row(model: SAM2Model) -> tuple[str, str, str, str, str]:
    repository, filename = weights.hub_file(model)
    millions = weights.MILLION_PARAMETERS[model.partition("-hiera-")[2]]
    return model, filename, repository, f"{millions} M", _where(model)


def _where(model: SAM2Model) -> str:
    try:
        source = weights.find(AutoSAM2Config(sam2_model=model))
    except WeightsError:
        return f"not in {weights.ENVIRONMENT_VARIABLE}={os.environ[weights.ENVIRONMENT_VARIABLE]}"
    return source.description if source.path else "not here"


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_memory(name: str) -> bool:
    return name.split(".")[0] in weights.VIDEO_MEMORY
