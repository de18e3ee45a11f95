"""What a prediction takes with trained models, beside the first of them: nnU-Net's own, usually.

Each round predicts the case once with every model, each in a process of its own, with nnU-Net's defaults: mirroring,
tiles that overlap by half. The clock runs from reading the images to the written segmentation; Python's start and the
reading of the checkpoint are left out, because they are the same for one case and for a hundred.

Usage: python -m experiments.prediction MODEL_FOLDER... --image CHANNEL_0 --image CHANNEL_1 [--fold 0] [--rounds 3]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
from tqdm import tqdm

PROGRAM = "nnunet_autosam2.benchmark.timed_prediction"


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--image", "images", multiple=True, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="One file a channel, in their order.",
)  # fmt: skip
@click.option("--fold", default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def main(models: tuple[Path, ...], images: tuple[Path, ...], fold: int, device: str, rounds: int) -> None:
    """A table in Markdown goes to the standard output."""
    records = defaultdict(list)
    with TemporaryDirectory() as folder:
        for _ in range(rounds):
            for model in tqdm(models, leave=False):
                records[model].append(predict(model, images, fold, device, Path(folder, "record.json")))
    seconds = {model: [sum(record["seconds"].values()) for record in those] for model, those in records.items()}
    memory = {model: max(record["peak_memory_bytes"] for record in those) for model, those in records.items()}
    first = models[0]
    click.echo("| model | seconds (least to most) | of the first | peak memory (GiB) | of the first |")
    click.echo("| --- | --- | --- | --- | --- |")
    for model in models:
        middle = median(seconds[model])
        click.echo(
            f"| {model.name} | {middle:.1f} ({min(seconds[model]):.1f} to {max(seconds[model]):.1f}) "
            f"| {middle / median(seconds[first]):.2f} "
            f"| {memory[model] / 2**30:.2f} | {memory[model] / memory[first]:.2f} |"
        )


def predict(model: Path, images: tuple[Path, ...], fold: int, device: str, record: Path) -> dict[str, Any]:
    cases = json.dumps({"case": [str(image.absolute()) for image in images]})
    arguments = [record, model, fold, device, cases]
    done = subprocess.run([sys.executable, "-m", PROGRAM, *map(str, arguments)], text=True, capture_output=True)
    if done.returncode:
        raise click.ClickException(f"Prediction with {model} failed:\n{done.stderr}")
    return json.loads(record.read_text())


if __name__ == "__main__":
    main()
