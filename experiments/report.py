"""What came out of an experiment: scores of each arm, and paired differences between arms, as Markdown and JSON."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import numpy as np

from experiments.arms import ARMS, REFERENCES
from experiments.runs import (
    BATCH_SIZE,
    NAME,
    PATH,
    Run,
    left_out_cases,
    model_folder,
    prediction_folder,
    read_settings,
    stamp_file,
    training_cases_of,
)
from nnunet_autosam2.benchmark.comparison import interval, paired_differences
from nnunet_autosam2.benchmark.results import MEAN, score_of
from nnunet_autosam2.dataset_conversion.regions import REGIONS
from nnunet_autosam2.evaluation.empty_regions import RULE
from nnunet_autosam2.evaluation.scoring import Scores
from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint, training_log

METRICS = {"Dice": ".3f", "IoU": ".3f", "HD95": ".1f"}


class Result(NamedTuple):
    run: Run
    case: str
    """Left out of the training"""
    scores: dict[str, dict[str, float | None]]
    """`[region][metric]`; None where it is not defined"""
    training_seconds: float
    prediction_seconds: float


def report(output: Path) -> None:
    path = output / "settings.json"
    if not path.exists():
        raise click.ClickException(f"{output} has no settings.json: nothing has been trained there.")
    settings = read_settings(path)
    cases, seeds = left_out_cases(output), len(list(output.glob("results_seed_*")))
    possible = itertools.starmap(Run, itertools.product(ARMS, range(len(cases)), range(seeds)))
    runs = [run for run in possible if stamp_file(output, f"predict_{run}").exists()]
    predicted = {f"{run}_{case}": (run, case) for run in runs for case in cases[run.fold]}
    scores = evaluate(output, predicted)
    results = [read_result(output, *predicted[name], scores["cases"][name]) for name in predicted]
    (output / "report.json").write_text(
        json.dumps({"settings": settings, "runs": list(map(as_json, results))}, indent=4)
    )
    metrics = f"Scores by brats-evaluation {scores['brats-evaluation']}, HD95 in mm. {scores['rules'][0]}"
    for line in markdown(settings, metrics, results):
        click.echo(line)


def evaluate(output: Path, predicted: dict[str, tuple[Run, str]]) -> dict[str, Any]:
    """Content of scores.json of `autosam2 evaluate`, by name for each run and case that it has predicted."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        predictions, truths = folder / "predictions", folder / "truths"
        predictions.mkdir()
        truths.mkdir()
        for name, (run, case) in predicted.items():
            (predictions / f"{name}.nii.gz").symlink_to(prediction_folder(output, run) / f"{case}.nii.gz")
            (truths / f"{name}.nii.gz").symlink_to(output / "raw" / NAME / "labelsTr" / f"{case}.nii.gz")
        command = ["autosam2", "evaluate", predictions, truths, "-o", folder / "scores", "--labels", "nnunet"]
        if subprocess.run(
            list(map(str, command)), env={**os.environ, "PATH": PATH}, stdout=subprocess.DEVNULL
        ).returncode:
            raise click.ClickException("The predictions could not be scored.")
        return json.loads((folder / "scores" / "scores.json").read_text())


def read_result(output: Path, run: Run, case: str, scores: dict[str, dict[str, float | None]]) -> Result:
    checkpoint = model_folder(output, run) / f"fold_{run.fold}" / "checkpoint_final.pth"
    trained = training_log(read_nnunet_checkpoint(checkpoint), checkpoint).seconds
    seconds = float(stamp_file(output, f"predict_{run}").read_text())
    return Result(run, case, scores, trained, seconds)


def as_json(result: Result) -> dict[str, Any]:
    return {
        **result.run._asdict(),
        "case": result.case,
        **{metric: {region: result.scores[region][metric] for region in REGIONS} for metric in METRICS},
        "training_seconds": result.training_seconds,
        "prediction_seconds": result.prediction_seconds,
    }


def markdown(settings: dict[str, Any], metrics: str, results: list[Result]) -> Iterator[str]:
    patch, spacing = ("×".join(format(side, "g") for side in settings[key]) for key in ("patch_size", "spacing"))
    yield weights_used(settings, {result.run.arm for result in results})
    yield (
        f"Patches of {patch} voxels of {spacing} mm, {BATCH_SIZE} a batch, {settings['epochs']} epochs of "
        f"{settings['iterations']} iterations ({settings['upgrade_epochs']} more on nnU-Net), "
        f"`sam2_image_size={settings['sam2_image_size']}`, device {settings['device']}. "
        "Mean ± standard deviation over left-out cases and seeds."
    )
    yield metrics
    yield (
        "Differences are paired, case by case (the mean of several seeds is one), with 95 % intervals of their mean by "
        f"Student's t. {RULE}"
    )
    for number in settings["training_cases"]:
        there = [result for result in results if training_cases_of(settings, result.run.fold) == number]
        if len(settings["training_cases"]) > 1 and there:
            yield from ("", f"## {number or 'All'} training cases")
        by_arm = {name: chosen for name in ARMS if (chosen := [each for each in there if each.run.arm == name])}
        yield from scores_and_differences(by_arm)
        yield from ("", "### Time", "")
        yield "Minutes for the epochs of a training; seconds for the command of a prediction, with its start."
        times = (
            [
                ARMS[name].title,
                spread([result.training_seconds / 60 for result in of_arm], ".1f"),
                spread([result.prediction_seconds for result in of_arm], ".0f"),
            ]
            for name, of_arm in by_arm.items()
        )
        yield from ("", *table(["arm", "training (min)", "prediction (s)"], times))
    yield from ("", f"## Each run: {' / '.join(METRICS)}", "")
    each = (
        [
            ARMS[result.run.arm].title,
            str(training_cases_of(settings, result.run.fold) or "all"),
            result.case,
            str(result.run.seed),
            *(
                " / ".join(spread([result.scores[region][metric]], form) for metric, form in METRICS.items())
                for region in REGIONS
            ),
        ]
        for result in results
    )
    yield from table(["arm", "training cases", "left-out case", "seed", *REGIONS], each)


def weights_used(settings: dict[str, Any], arms: set[str]) -> str:
    checkpoint, checksum = settings["sam2_checkpoint"], settings["sam2_sha256"]
    if checkpoint == "random":
        return "SAM2's weights are random."
    known = f"{Path(checkpoint).name} (SHA-256 {checksum})" if checksum else checkpoint
    untrained = " or ".join(
        ARMS[arm].title for arm in ARMS if "sam2_checkpoint=random" in ARMS[arm].parameters and arm in arms
    )
    return f"SAM2's weights: {known}" + (f"; random ones in the arm “{untrained}”." if untrained else ".")


def scores_and_differences(by_arm: dict[str, list[Result]]) -> Iterator[str]:
    for metric, form in METRICS.items():
        yield from ("", f"### {metric}", "")
        rows = (
            [
                ARMS[name].title,
                str(len(of_arm)),
                *(
                    spread([score_of(each.scores, region, metric) for each in of_arm], form)
                    for region in (*REGIONS, MEAN)
                ),
            ]
            for name, of_arm in by_arm.items()
        )
        yield from table(["arm", "cases", *REGIONS, MEAN], rows)
        for reference in REFERENCES:
            compared = [name for name in by_arm if reference in by_arm and comparable(name, reference)]
            if compared:
                header = [f"{metric}, less {ARMS[reference].title}", "cases", *REGIONS, MEAN]
                yield from (
                    "",
                    *table(header, (differences(by_arm, name, reference, metric, form) for name in compared)),
                )


def comparable(arm: str, reference: str) -> bool:
    """Whether they are compared: with as many iterations or with nnU-Net, and two references once."""
    same = (ARMS[arm].starts_from is None) == (ARMS[reference].starts_from is None)
    earlier = REFERENCES[: REFERENCES.index(reference) + 1]
    return arm not in earlier and (same or reference == "nnunet")


def differences(by_arm: dict[str, list[Result]], arm: str, reference: str, metric: str, form: str) -> list[str]:
    """Row of the arm's paired differences in each region and in their mean."""
    scores: dict[str, dict[int, Scores]] = {arm: defaultdict(dict), reference: defaultdict(dict)}
    for name, of_seed in scores.items():
        for each in by_arm[name]:
            of_seed[each.run.seed][each.case] = each.scores
    common = scores[arm].keys() & scores[reference].keys()
    cases = set().union(*(scores[arm][seed].keys() & scores[reference][seed].keys() for seed in common))
    cells = []
    for region in (*REGIONS, MEAN):
        of_case = defaultdict(list)
        for seed in common:
            for case, value in paired_differences(scores[arm][seed], scores[reference][seed], region, metric).items():
                of_case[case].append(value)
        cells.append(with_interval([float(np.mean(values)) for values in of_case.values()], form))
    return [ARMS[arm].title, str(len(cases)), *cells]


def with_interval(differences: list[float], form: str) -> str:
    """Mean and its interval: `+0.042 (+0.019 to +0.065)`."""
    if not differences:
        return "none"
    low, high = interval(np.array(differences), least=2)
    bounds = "" if low is None else f" ({low:+{form}} to {high:+{form}})"
    return f"{np.mean(differences):+{form}}{bounds}"


def spread(values: Iterable[float | None], form: str) -> str:
    """Mean ± standard deviation of those that are defined."""
    there = np.array([value for value in values if value is not None])
    if not there.size:
        return "none"
    return format(there.mean(), form) + (f" ± {there.std(ddof=1):{form}}" if there.size > 1 else "")


def table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(cells)} |"
