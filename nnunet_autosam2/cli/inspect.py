"""`autosam2 inspect`: what is in a checkpoint, without running anything that may be in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnunet_autosam2.config import PLANS_KEY, AutoSAM2Config
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.support.columns import aligned
from nnunet_autosam2.support.dataset_json import foreground_labels, require_dataset_json
from nnunet_autosam2.support.text import LINE, printable

if TYPE_CHECKING:
    from torch import Tensor

VETOED = "fusion.seg_layers.vetoed"


@click.command(
    short_help="Show what is in a checkpoint, and run nothing of it.",
    epilog="Example: autosam2 inspect RESULTS_FOLDER/fold_0/checkpoint_final.pth",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="Every tensor with its shape and type, in the place of a line a part.")
def command(checkpoint: Path, tensors: bool) -> None:
    """Show trainer, configuration, progress and shapes of CHECKPOINT, a file that nnU-Net has written.

    nnU-Net itself unpickles checkpoints, which may run code that is in them. This command reads the same file and
    refuses it, with exit code 1, if there is anything in it but tensors, numbers, text and containers, or if its plans,
    or plans.json of the results folder that it lies in, name code that is not nnU-Net's own.
    """
    from torch import is_tensor

    from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint
    from nnunet_autosam2.support.plans import read_plans, require_known_parts

    content = read_nnunet_checkpoint(checkpoint)
    for title, value in _facts(content):
        click.echo(f"{title:<14} {printable(value, LINE)}")
    click.echo()
    weights = {str(name): value for name, value in _mapping(content["network_weights"]).items() if is_tensor(value)}
    click.echo(aligned(_every_tensor(weights) if tensors else _parts(weights), numbers=True))
    plans = _mapping(_mapping(content["init_args"]).get("plans"))
    require_known_parts(plans, f"{checkpoint}: plans")
    beside = checkpoint.absolute().parent.parent / "plans.json"  # which a prediction reads in their place
    if beside.exists():
        require_known_parts(read_plans(beside), beside)


def _facts(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    arguments = _mapping(content["init_args"])
    plans, name = _mapping(arguments.get("plans")), str(arguments.get("configuration"))
    settings = _mapping(_mapping(plans.get("configurations")).get(name))
    yield "trainer", content["trainer_name"]
    yield "data set", plans.get("dataset_name", "unknown")
    yield "plans", plans.get("plans_name", "unknown")
    yield "configuration", f"{name}, fold {arguments.get('fold')}"
    for title, key in (("patch size", "patch_size"), ("batch size", "batch_size"), ("spacing", "spacing")):
        if key in settings:
            yield title, settings[key]
    if PLANS_KEY in settings:
        changed = AutoSAM2Config().differences(AutoSAM2Config.from_dict(_mapping(settings[PLANS_KEY])))
        yield "AutoSAM2", ", ".join(f"{key} = {value}" for key, (_, value) in changed.items()) or "defaults"
    if (closed := _closed_gates(content, settings)) is not None:
        yield "closed gates", ", ".join(closed) or "none"
    if "current_epoch" in content:
        yield "epochs", content["current_epoch"]
    if isinstance(content.get("_best_ema"), float):
        yield "best EMA", f"{content['_best_ema']:.4f}, of the pseudo Dice"
    others = sorted(
        map(str, content.keys() - {"trainer_name", "init_args", "network_weights", "current_epoch", "_best_ema"})
    )
    yield "also in it", ", ".join(others) or "nothing"


def _closed_gates(content: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str] | None:
    """Names of the regions or foreground classes; None where there is no gate that could be closed, or no names."""
    import torch

    from nnunet_autosam2.support.checkpoint import unusable

    weights, dataset_json = _mapping(content["network_weights"]), _mapping(content["init_args"]).get("dataset_json")
    try:
        require_dataset_json(dataset_json, "dataset.json")
    except DatasetError:
        return None
    names = list(foreground_labels(_mapping(dataset_json)))
    region_based = AutoSAM2Config.from_dict(_mapping(settings.get(PLANS_KEY, {}))).region_based
    outputs = torch.zeros(len(names) + (not region_based), dtype=torch.bool)
    if VETOED not in weights or unusable(weights, {VETOED: outputs}):
        return None
    return [name for name, vetoed in zip(names, weights[VETOED][-len(names) :].tolist(), strict=True) if vetoed]


def _mapping(value: Any) -> Mapping[Any, Any]:
    """A file from anywhere may have anything in the place of a dictionary."""
    return value if isinstance(value, Mapping) else {}


def _every_tensor(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, ...]]:
    yield "tensor", "shape", "type"
    for name, tensor in weights.items():
        yield name, "×".join(map(str, tensor.shape)) or "one number", str(tensor.dtype).removeprefix("torch.")


def _parts(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, ...]]:
    """nnU-Net's networks hold some tensors under two names; they count where they come first."""
    seen: set[tuple] = set()
    numbers: dict[str, list[int]] = {}
    for name, tensor in weights.items():
        where = tensor.data_ptr(), tensor.shape
        if where in seen and tensor.numel():
            continue
        seen.add(where)
        part = numbers.setdefault(".".join(name.split(".")[:2]), [0, 0])
        part[0] += 1
        part[1] += tensor.numel()
    numbers["all"] = [sum(counts[column] for counts in numbers.values()) for column in (0, 1)]
    yield "part", "tensors", "numbers"
    for name, counts in numbers.items():
        yield name, *(f"{count:,}" for count in counts)
