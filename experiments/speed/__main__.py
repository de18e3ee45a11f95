"""What AutoSAM2 costs: nnU-Net's planned network, ours at several slice fractions, and SAM2 slice by slice, in one run.

Each round times every network once, so that a machine that slows down slows all of them. Reported are medians with the
least and the most, and ratios within the run. The floor is what was counted in floating-point operations over the best
rate that any network of this run has reached.

SAM2's weights are random, which changes no time. The networks are untrained, so they see foreground everywhere and ask
SAM2 about every slice that they may; a trained one asks about fewer in a prediction.

Usage: python -m experiments.speed [--patch-size 128 128 128] [--device cuda] [--rounds 5] [--output FOLDER]
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.speed.competitors import BACKBONES, LOOP, NNUNET, competitors, title
from experiments.speed.measure import FORWARD, STEP, Bench, Measured, interleaved, memory_of_runs, seconds_by_depth
from experiments.speed.setting import COMPILED, Setting
from experiments.speed.side_by_side import Contestant, steps_in_turns

MEMORY = "memory"


@click.command()
@click.option("--patch-size", nargs=3, type=int, default=(128, 128, 128), show_default=True, metavar="Z Y X")
@click.option("--batch-size", default=2, show_default=True)
@click.option("--classes", type=click.IntRange(1), help="Exclusive ones. Default: three regions, as in BraTS.")
@click.option("--channels", default=4, show_default=True, help="Modalities.")
@click.option("--features", nargs=2, type=int, default=(32, 320), show_default=True, metavar="FIRST MOST")
@click.option("--fraction", "fractions", multiple=True, type=float, default=(0.1, 0.3, 0.6, 1.0), show_default=True)
@click.option("--loop-fraction", default=0.3, show_default=True, help="Of the slices that the loop asks SAM2 about.")
@click.option("--sam2-model", default="sam2.1-hiera-tiny", show_default=True)
@click.option("--sam2-image-size", default=512, show_default=True, help="Pixels.")
@click.option("--sam2-precision", default="auto", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--compiled",
    "ways",
    multiple=True,
    type=click.Choice(list(COMPILED)),
    default=["no"],
    show_default=True,
    help="; ".join(f"{way}: {what}" for way, what in COMPILED.items())
    + ". Several: training steps and their memory alone, in processes that compile at once and are timed in turns.",
)
@click.option("--gpu-memory", type=float, help="GiB that the networks may take where peak memory is measured.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--network", "only", multiple=True, metavar="NAME", help="May be repeated. Default: all.")
@click.option("--what", multiple=True, type=click.Choice([FORWARD, STEP, MEMORY]), default=(FORWARD, STEP, MEMORY))
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=Path("speed"), show_default=True)
def main(
    fractions: tuple[float, ...],
    loop_fraction: float,
    rounds: int,
    only: tuple[str, ...],
    what: tuple[str, ...],
    ways: tuple[str, ...],
    output: Path,
    **shared: Any,
) -> None:
    """OUTPUT gets speed.json and speed.png; tables in Markdown go to the standard output."""
    warnings.filterwarnings("ignore", message="sam2_checkpoint is random")
    setting = Setting(**shared, compiled=ways[0])
    makers = dict(competitors(setting, fractions, loop_fraction))
    if unknown := set(only) - set(makers):
        raise click.ClickException(f"--network {', '.join(unknown)}: unknown. Possible: {'; '.join(makers)}.")
    makers = {name: make for name, make in makers.items() if not only or name in only}
    output.mkdir(parents=True, exist_ok=True)
    if len(ways) > 1:
        contestants = {
            f"{name}, compiled: {way}": Contestant(setting._replace(compiled=way), make)
            for way in ways
            for name, make in makers.items()
            if name != LOOP
        }
        steps, memory = steps_in_turns(contestants, rounds)
        write(output, setting, {STEP: steps}, {}, memory)
        for line in markdown({STEP: steps}, {}, memory, fractions, title("autosam2", loop_fraction)):
            click.echo(line)
        return

    bench, built = Bench(setting), {name: make() for name, make in makers.items()}
    trained = {name: competitor for name, competitor in built.items() if name != LOOP}
    measured = {}
    if FORWARD in what:
        measured[FORWARD] = interleaved(bench, built, FORWARD, rounds)
    if STEP in what:
        measured[STEP] = interleaved(bench, trained, STEP, rounds)
    hybrid = title("autosam2", loop_fraction)
    depths = seconds_by_depth(setting, built[hybrid], rounds) if FORWARD in what and hybrid in built else {}
    del built, trained
    memory = {}
    if MEMORY in what:
        for name in tqdm(makers, desc=MEMORY):
            memory[name] = memory_of_runs(setting, makers[name], FORWARD if name == LOOP else STEP)

    write(output, setting, measured, depths, memory)
    draw(measured, (0.0, *fractions), output / "speed.png")
    for line in markdown(measured, depths, memory, fractions, hybrid):
        click.echo(line)


def write(
    output: Path,
    setting: Setting,
    measured: Mapping[str, Mapping[str, Measured]],
    depths: Mapping[int, Sequence[float]],
    memory: Mapping[str, int],
) -> None:
    result = {
        "setting": setting._asdict(),
        **{work: {name: vars(each) for name, each in there.items()} for work, there in measured.items()},
        "seconds of a forward pass by depth": depths,
        "peak memory in bytes": memory,
    }
    (output / "speed.json").write_text(json.dumps(result, indent=4))


def markdown(
    measured: Mapping[str, Mapping[str, Measured]],
    depths: Mapping[int, Sequence[float]],
    memory: Mapping[str, int],
    fractions: Sequence[float],
    hybrid: str,
) -> Iterator[str]:
    for work, networks in measured.items():
        rate = max(each.operations / min(each.seconds) for each in networks.values())
        reference = next((median(networks[name].seconds) for name in networks if is_nnunet(name)), float("nan"))
        yield f"\n### {work.capitalize()}\n\nBest rate: {rate / 1e9:.0f} GFLOP/s.\n"
        yield f"| network | seconds (least to most) | of {NNUNET} | TFLOP | floor (s) | launches | compiling (s) |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        for name, each in networks.items():
            middle = median(each.seconds)
            yield (
                f"| {name} | {middle:.3g} ({min(each.seconds):.3g} to {max(each.seconds):.3g}) "
                f"| {middle / reference:.2f} | {each.operations / 1e12:.3f} | {each.operations / rate:.3g} "
                f"| {each.launches or ''} | {format(each.compiling, '.0f') if each.compiling else ''} |"
            )
        for backbone in BACKBONES:
            there = {fraction: networks.get(title(backbone, fraction)) for fraction in fractions}
            times = {fraction: median(each.seconds) for fraction, each in there.items() if each}
            if len(times) > 2:
                yield f"\n{BACKBONES[backbone]}: {linearity(times)} in the fraction of the slices."
        if LOOP in networks and hybrid in networks:
            gain = median(networks[LOOP].seconds) / median(networks[hybrid].seconds)
            yield f"\n{LOOP.capitalize()} takes {gain:.1f} times as long as {hybrid}."
    if depths:
        times = {depth: median(seconds) for depth, seconds in depths.items()}
        shown = ", ".join(f"{depth} slices {seconds:.3g} s" for depth, seconds in times.items())
        yield f"\n### Depth\n\nA forward pass of {hybrid}: {shown}; {linearity(times)} in the depth."
    if memory:
        yield f"\n### Peak memory of training\n\n| network | GiB | of {NNUNET} |\n| --- | --- | --- |"
        reference = next((size for name, size in memory.items() if is_nnunet(name)), float("nan"))
        for name, size in memory.items():
            yield f"| {name} | {size / 2**30:.2f} | {size / reference:.2f} |"


def is_nnunet(name: str) -> bool:
    """The first of nnU-Net's network, however compiled, is what others are compared with."""
    return name.split(", compiled")[0] == NNUNET


def linearity(times: Mapping[float, float]) -> str:
    return f"linear with R² = {np.corrcoef(list(times), list(times.values()))[0, 1] ** 2:.4f}"


def draw(measured: Mapping[str, Mapping[str, Measured]], fractions: Sequence[float], path: Path) -> None:
    """Cost against the fraction of slices, for each backbone."""
    figure = Figure(figsize=(5 * max(1, len(measured)), 4), layout="constrained")
    panels = figure.subplots(1, max(1, len(measured)), squeeze=False)[0]
    for panel, (work, networks) in zip(panels, measured.items(), strict=False):
        for backbone, label in BACKBONES.items():
            points = [(fraction, networks.get(title(backbone, fraction))) for fraction in fractions]
            there = [(100 * fraction, each.seconds) for fraction, each in points if each]
            if there:
                percent, seconds = zip(*there, strict=True)
                middle = [median(each) for each in seconds]
                errors = np.array([[m - min(s), max(s) - m] for m, s in zip(middle, seconds, strict=True)]).T
                panel.errorbar(percent, middle, errors, marker="o", capsize=3, label=label)
        if NNUNET in networks:
            panel.axhline(median(networks[NNUNET].seconds), color="black", linestyle="--", label=NNUNET)
        panel.set(title=work, xlabel="slices that SAM2 sees (%)", ylabel="seconds")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
