"""`autosam2 doctor`: whether a training would start here, and what to do if not."""

from __future__ import annotations

import importlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

from nnunet_autosam2.config import AutoSAM2Config, parse_assignments
from nnunet_autosam2.errors import AutoSAM2Error
from nnunet_autosam2.support import discovery
from nnunet_autosam2.support.discovery import TRAINER
from nnunet_autosam2.support.environment import device_name, versions

WEIGHTS = "SAM2 weights"


class Finding(NamedTuple):
    status: str
    """`ok`, `note` (worth knowing, stops no training) or `PROBLEM`"""
    subject: str
    detail: str


@click.command(
    short_help="Check that everything a training needs is here.",
    epilog="Example: autosam2 doctor, or for the report of a fault: autosam2 doctor --json",
)
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--model", metavar="NAME", help="Same as sam2_model=NAME.")
@click.option("--fix", is_flag=True, help="Of an editable install, link the trainers into nnU-Net's package.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for reports and scripts.")
@click.pass_context
def command(context: click.Context, assignments: tuple[str, ...], model: str | None, fix: bool, as_json: bool) -> None:
    """Check versions, trainer discovery, device, SAM2 weights and nnU-Net's folders.

    KEY=VALUE changes the configuration to check for, such as sam2_checkpoint=random. Exit code 1 when something
    would stop a training.
    """
    changes = parse_assignments(assignments)
    config = AutoSAM2Config().updated({**changes, **({"sam2_model": model} if model else {})})
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        **({"overlay": _fix} if fix else {}),
        TRAINER: lambda: _trainer(config),
        "device": _device,
        WEIGHTS: lambda: _weights(config),
        "folders": _folders,
    }
    found: list[Finding] = []
    for subject, check in checks.items():
        for finding in _findings(subject, check):
            found.append(finding)
            if not as_json:
                click.echo(f"{finding.status:<8} {finding.subject:<30} {finding.detail}")
    problems = sum(finding.status == "PROBLEM" for finding in found)
    if as_json:
        described = {"system": platform.platform(), "findings": [finding._asdict() for finding in found]}
        click.echo(json.dumps({**described, "problems": problems}, indent=4))
    elif problems:
        click.echo(f"{problems} problem{'s' if problems > 1 else ''} would stop a training.")
    else:
        click.echo("Nothing would stop a training.")
    if problems:
        context.exit(1)


def _findings(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Findings of one check; a check that breaks is a finding itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of third parties, on import
            yield from check()
    except Exception as error:  # a broken installation may raise anything, and is what this command is for
        yield Finding("PROBLEM", subject, _one_line(error))


def _versions() -> Iterator[Finding]:
    for name, version in versions().items():
        missing = f"not installed: pip install {name}"
        yield Finding("PROBLEM", name, missing) if version is None else Finding("ok", name, version)


def _fix() -> Iterator[Finding]:
    yield Finding("ok", "overlay", discovery.link_overlay())


def _trainer(config: AutoSAM2Config) -> Iterator[Finding]:
    try:
        trainer = discovery.search_trainer()
        if config.uses_sam2:  # imported with the first network only
            importlib.import_module("nnunet_autosam2.architectures.sam2.model")
    except Exception as error:
        yield Finding("PROBLEM", TRAINER, f"cannot be imported: {_one_line(error)}")
        return
    if trainer is None:
        remedy = discovery.search_remedy()
        if discovery.is_editable():
            remedy = remedy.replace("Run: ", "Run: autosam2 doctor --fix, or: ", 1)
        yield Finding("PROBLEM", TRAINER, f"nnU-Net does not find it. {remedy}")
        return
    yield Finding("ok", TRAINER, f"found by nnU-Net, in {trainer.__module__}")


def _device() -> Iterator[Finding]:
    from nnunet_autosam2.architectures.sam2.model import is_faster_in_bfloat16

    device = discovery.default_device()
    name = device_name(device) + ("" if device.type == "cuda" else f" (train with -device {device})")
    precision = "SAM2 in " + ("bfloat16" if is_faster_in_bfloat16(device) else "float32")
    yield Finding("ok" if device.type == "cuda" else "note", "device", f"{name}, {precision}")


def _weights(config: AutoSAM2Config) -> Iterator[Finding]:
    if not config.uses_sam2:
        yield Finding("ok", WEIGHTS, "not needed: SAM2 is off")
        return
    from nnunet_autosam2.architectures.sam2 import weights
    from nnunet_autosam2.architectures.sam2.model import SAM2

    source = weights.find(config)
    if source.kind == "hub":
        weights.require_reachable(config)
    if source.path:
        sam2 = SAM2.build(config.sam2_model, config.sam2_image_size, memory=config.propagation == "memory")
        weights.load_into(sam2, weights.read_checkpoint(source.path), source.path)
    status = "note" if source.kind == "random" else "ok"
    yield Finding(status, WEIGHTS, f"{config.sam2_model}: {source.description}")


def _folders() -> Iterator[Finding]:
    """Trainings read the preprocessed data and write results; raw data serve conversion and planning only."""
    for name, fault in (("nnUNet_raw", "note"), ("nnUNet_preprocessed", "PROBLEM"), ("nnUNet_results", "PROBLEM")):
        folder = os.environ.get(name)
        if not folder:
            yield Finding(fault, name, f"not set: export {name}=FOLDER")
        elif not Path(folder).is_dir():
            yield Finding(fault, name, f"{folder} is not a folder: mkdir -p {folder}")
        elif os.access(folder, os.W_OK | os.X_OK):
            yield Finding("ok", name, folder)
        else:
            must_write = name == "nnUNet_results"
            yield Finding("PROBLEM" if must_write else "note", name, f"{folder} is not writable for you")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, AutoSAM2Error) else f"{type(error).__name__}: {text}"
