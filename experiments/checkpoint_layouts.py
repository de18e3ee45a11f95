"""Loads a checkpoint of every official model, and of fine-tuned ones, into the network and compares bit by bit.

The checkpoints hold random numbers under the names and with the shapes of the real files, which LAYOUT_FOLDER lists:
a JSON file each, names → shapes. Official models that are not among them are built by the sam2 package.

Usage: python -m experiments.checkpoint_layouts LAYOUT_FOLDER
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click
import torch
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.architectures.sam2.model import SAM2
from nnunet_autosam2.architectures.sam2.weights import hub_file, read_checkpoint, recognise
from nnunet_autosam2.config import SAM2_MODELS

HEADER = (
    "file",
    "model",
    "entries",
    "used",
    "parameters",
    "used",
    "file / MB",
    "used / MB",
    "loading / s",
)


@click.command()
@click.argument("layout_folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(layout_folder: Path) -> None:
    click.echo(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for filename, shapes in layouts(layout_folder).items():
        with tempfile.TemporaryDirectory() as folder:
            click.echo(f"| {' | '.join(check(Path(folder) / filename, shapes))} |")


def layouts(folder: Path) -> dict[str, dict[str, list[int]]]:
    """File name → names → shapes."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    for model in SAM2_MODELS:
        repository, filename = hub_file(model)
        if filename not in found:
            state = build_sam2(HF_MODEL_ID_TO_FILENAMES[repository][0], device="cpu").state_dict()
            found[filename] = {name: list(tensor.shape) for name, tensor in state.items()}
    return found


def check(path: Path, shapes: dict[str, list[int]]) -> tuple[str, ...]:
    """A row of the table."""
    torch.manual_seed(0)
    torch.save({"model": {name: torch.randn(shape) for name, shape in shapes.items()}}, path)
    state = read_checkpoint(path)
    model = recognise(state)
    assert model is not None, f"{path.name} has the architecture of no official model"
    whole, _ = load(path, model, "memory")
    require_equal(whole, state)
    assert len(whole.state_dict()) == len(state), f"{path.name}: not every entry is used with the memory for videos"
    used, seconds = load(path, model, "linear")
    require_equal(used, state)
    return (
        path.name,
        model,
        str(len(state)),
        str(len(used.state_dict())),
        f"{sum(parameter.numel() for parameter in whole.parameters()):,}",
        f"{sum(parameter.numel() for parameter in used.parameters()):,}",
        f"{path.stat().st_size / 1e6:.1f}",
        f"{sum(tensor.nbytes for tensor in used.state_dict().values()) / 1e6:.1f}",
        f"{seconds:.1f}",
    )


def load(path: Path, model: str, propagation: str) -> tuple[SAM2, float]:
    """The network's SAM2, filled as at the start of a training, and how long that took."""
    network = AutoSAM2(num_classes=4, sam2_model=model, sam2_checkpoint=str(path), propagation=propagation)
    assert network.sam2_branch is not None
    start = time.perf_counter()
    network.load_sam2_weights()
    return network.sam2_branch.sam2, time.perf_counter() - start


def require_equal(sam2: SAM2, state: dict[str, torch.Tensor]) -> None:
    for name, tensor in sam2.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{name} differs from the file"


if __name__ == "__main__":
    main()
