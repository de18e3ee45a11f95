"""Does SAM2 help? Every arm on the same left-out cases, with the same plans and patches.

Cross-validation on labelled cases in BraTS layout: an arm trains on all cases but those of a fold and predicts these;
leave-one-out unless `--num-folds` says otherwise. All arms see the same batches, and one nnU-Net a fold serves all arms
that start from it. Everything is done by nnU-Net's commands. What is done in OUTPUT is not done again and a training
that was interrupted goes on, so a run can be stopped and started again at any time. The report goes to the standard
output, as Markdown, and into OUTPUT/report.json.

Usage: python -m experiments.experiment DATA OUTPUT [--num-folds 5] [--folds 2] [--seeds 2] [--device cuda]
    [--sam2-checkpoint FILE] [--report-only]
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, NoReturn

import click
import numpy as np

from nnunet_autosam2.dataset_conversion.regions import REGIONS
from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint, training_log

DATASET, NAME = "40", "Dataset040_Experiment"
PLANS, CONFIGURATION = "nnUNetPlansExperiment", "small"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
TRAINERS = Path(__file__).resolve().parent / "trainers"
BATCH_SIZE = 2
ON_BASELINE = "nnUNetTrainerAutoSAM2_OnBaseline_Short"
METRICS = {"Dice": ".3f", "IoU": ".3f", "HD95": ".1f"}


class Arm(NamedTuple):
    title: str
    trainer: str
    parameters: tuple[str, ...] = ()
    starts_from: str | None = None
    """The arm whose weights it starts from"""
    in_time: bool = False
    """It has fewer epochs: `--in-time-epochs`"""


ARMS = {
    "nnunet": Arm("nnU-Net", "nnUNetTrainerShort"),
    "unet_only": Arm("UNet only", "nnUNetTrainerAutoSAM2_UNetOnly_Short"),
    "hybrid_30_fixed": Arm("hybrid 30 %, fixed", "nnUNetTrainerAutoSAM2_Short", ("fusion=fixed",)),
    "hybrid_30_gated": Arm("hybrid 30 %, gated", "nnUNetTrainerAutoSAM2_Short"),
    "hybrid_30_joint": Arm(
        "hybrid 30 %, gated, joint training", "nnUNetTrainerAutoSAM2_Short", ("joint_training=true",)
    ),
    "hybrid_60_fixed": Arm("hybrid 60 %, fixed", "nnUNetTrainerAutoSAM2_Short", ("slice_fraction=0.6", "fusion=fixed")),
    "hybrid_60_gated": Arm("hybrid 60 %, gated", "nnUNetTrainerAutoSAM2_Short", ("slice_fraction=0.6",)),
    "upgrade": Arm("nnU-Net, frozen, SAM2 on it", ON_BASELINE, starts_from="nnunet"),
    "upgrade_random": Arm("the same, 8 slices at random", f"{ON_BASELINE}_AtRandom", starts_from="nnunet"),
    "upgrade_4": Arm("the same, windows of 4", ON_BASELINE, ("training_slices=4",), starts_from="nnunet"),
    "upgrade_2": Arm("the same, windows of 2", ON_BASELINE, ("training_slices=2",), starts_from="nnunet"),
    "upgrade_all": Arm("the same, all slices", ON_BASELINE, ("training_slices=null",), starts_from="nnunet"),
    "upgrade_all_in_time": Arm(
        "the same, all slices, in the time of windows", ON_BASELINE, ("training_slices=null",), "nnunet", in_time=True
    ),
    "upgrade_features": Arm("the same, features too", ON_BASELINE, ("feature_fusion=true",), starts_from="nnunet"),
    "upgrade_features_alone": Arm(
        "nnU-Net, frozen, SAM2's features in it", ON_BASELINE, ("feature_fusion=true", "fusion=off"), "nnunet"
    ),
    "nnunet_then_sam2": Arm("nnU-Net, then SAM2 on it", ON_BASELINE, ("freeze_backbone=false",), starts_from="nnunet"),
    "nnunet_then_alone": Arm(
        "nnU-Net, then the same without SAM2",
        ON_BASELINE,
        ("enable_sam2=false", "freeze_backbone=false"),
        starts_from="nnunet",
    ),
}
"""Those that start from nnU-Net have its iterations before their own, so that they compare with each other."""
REFERENCES = ("unet_only", "nnunet")


class Run(NamedTuple):
    """One training and the prediction of the case that it has not seen."""

    arm: str
    fold: int
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}_fold_{self.fold}_seed_{self.seed}"


class Result(NamedTuple):
    run: Run
    case: str
    """Left out of the training"""
    scores: np.ndarray
    """[METRICS, REGIONS], NaN where a region is nowhere"""
    training_seconds: float
    prediction_seconds: float


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--arms", multiple=True, type=click.Choice(list(ARMS)), help="May be repeated. Default: all.")
@click.option("--num-folds", type=click.IntRange(2), help="Parts of the cases. Default: one a case.")
@click.option("--folds", type=click.IntRange(1), default=2, show_default=True, help="How many of them are trained.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Trainings of an arm and fold.")
@click.option("--modalities", default="t1ce,flair", show_default=True, help="Of the cases.")
@click.option("--device", type=click.Choice(["cpu", "cuda", "mps"]), default="cpu", show_default=True)
@click.option("--sam2-checkpoint", default="random", show_default=True, help="Of sam2.1-hiera-tiny: a file, or auto.")
@click.option("--spacing", nargs=3, type=float, default=(2, 2, 2), show_default=True, metavar="Z Y X", help="In mm.")
@click.option("--patch-size", nargs=3, type=int, default=(48, 64, 64), show_default=True, metavar="Z Y X")
@click.option("--features", nargs=2, type=int, default=(16, 128), show_default=True, metavar="FIRST MOST")
@click.option("--sam2-image-size", default=128, show_default=True, help="Pixels.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--upgrade-epochs", type=click.IntRange(1), help="Of arms that start from nnU-Net. Default: the same.")
@click.option("--in-time-epochs", type=click.IntRange(1), default=5, show_default=True, help='Of "in the time of".')
@click.option("--iterations", type=click.IntRange(1), default=25, show_default=True, help="Of an epoch.")
@click.option("--report-only", is_flag=True, help="Report what is there; the other options do not matter.")
def main(
    data: Path,
    output: Path,
    arms: tuple[str, ...],
    num_folds: int | None,
    folds: int,
    seeds: int,
    modalities: str,
    device: str,
    sam2_checkpoint: str,
    spacing: tuple[float, float, float],
    patch_size: tuple[int, int, int],
    features: tuple[int, int],
    sam2_image_size: int,
    epochs: int,
    upgrade_epochs: int | None,
    in_time_epochs: int,
    iterations: int,
    report_only: bool,
) -> None:
    """Train, predict and score each arm on the cases of DATA; everything is written below OUTPUT."""
    if not report_only:
        if sam2_checkpoint not in ("auto", "random"):
            sam2_checkpoint = str(Path(sam2_checkpoint).absolute())
        settings = {
            "data": str(data.absolute()),
            "device": device,
            "sam2_checkpoint": sam2_checkpoint,
            "spacing": list(spacing),
            "patch_size": list(patch_size),
            "features": list(features),
            "sam2_image_size": sam2_image_size,
            "modalities": modalities,
            "num_folds": num_folds,
            "epochs": epochs,
            "upgrade_epochs": upgrade_epochs or epochs,
            "in_time_epochs": in_time_epochs,
            "iterations": iterations,
        }
        signal.signal(signal.SIGTERM, stop)
        experiment = Experiment(output.absolute(), settings)
        experiment.prepare(folds)
        for seed in range(seeds):
            for fold in range(folds):
                for arm in dict.fromkeys(arms) or ARMS:
                    experiment.train_and_predict(Run(arm, fold, seed))
    report(output.absolute())


def stop(*_: object) -> NoReturn:
    """Raise an exception, so that the command at work ends, too."""
    raise click.ClickException("Stopped. Start it again to go on.")


class Experiment:
    """
    Raises:
        click.ClickException: OUTPUT is in use, or was started with other settings; a command has failed.
    """

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        self.output, self.settings = output, settings
        for folder in ("log", "done"):
            (output / folder).mkdir(parents=True, exist_ok=True)
        self.lock = (output / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise click.ClickException(
                f"{output} is in use, by another run or by a training that it started."
            ) from error
        self.environment = {
            **os.environ,
            "PATH": PATH,
            "PYTHONUNBUFFERED": "1",
            "nnUNet_raw": str(output / "raw"),
            "nnUNet_preprocessed": str(output / "preprocessed"),
            "nnUNet_extTrainer": str(TRAINERS),
            "nnUNet_def_n_proc": "2",
            # Threads that spin while they wait slow each other down where other work runs on the same cores.
            "OMP_WAIT_POLICY": "PASSIVE",
            # As in the Makefile: what a CPU saves when freed memory stays in the process.
            "MALLOC_MMAP_THRESHOLD_": "4294967296",
            "MALLOC_TRIM_THRESHOLD_": "17179869184",
            "MALLOC_TOP_PAD_": "268435456",
        }

    def prepare(self, folds: int) -> None:
        """Convert, preprocess, write plans and splits; all of it again where it has not come to its end."""
        path = self.output / "settings.json"
        if path.exists():
            there = json.loads(path.read_text())
            other = [f"{key} = {there.get(key)}" for key, value in self.settings.items() if there.get(key) != value]
            if other:
                raise click.ClickException(f"{self.output} was started with {', '.join(other)}: choose another folder.")
        else:
            for folder in ("raw", "preprocessed", "left_out"):
                shutil.rmtree(self.output / folder, ignore_errors=True)
                (self.output / folder).mkdir()
            self._convert_and_plan()
            path.write_text(json.dumps(self.settings, indent=4))
        if folds > len(found := left_out_cases(self.output)):
            raise click.ClickException(f"--folds {folds} is too many: there are {len(found)}.")

    def _convert_and_plan(self) -> None:
        settings = self.settings
        self._execute(
            "convert", "autosam2", "convert-brats", settings["data"], "-d", DATASET, "-n", "Experiment",
            "--modalities", settings["modalities"],
        )  # fmt: skip
        self._execute(
            "preprocess", "nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", "3d_fullres", "-np", "2", "-npfp", "2",
            "-overwrite_target_spacing", *settings["spacing"], "-overwrite_plans_name", PLANS,
        )  # fmt: skip
        configure = ("autosam2", "configure", DATASET, "-p", PLANS)
        first, most = settings["features"]
        self._execute(
            "configure", *configure, "--name", CONFIGURATION, "--batch-size", BATCH_SIZE,
            "--patch-size", *settings["patch_size"],
            "--base-features", first, "--max-features", most,
            f"sam2_checkpoint={settings['sam2_checkpoint']}", f"sam2_image_size={settings['sam2_image_size']}",
            f"num_epochs={settings['epochs']}", f"num_iterations_per_epoch={settings['iterations']}",
            "num_val_iterations_per_epoch=4", "initial_lr=1e-3",
            f"early_stopping_patience={settings['epochs']}",  # so it never stops early
        )  # fmt: skip
        for name, arm in ARMS.items():
            if parameters := self._parameters(arm):
                command = (*configure, "--base", CONFIGURATION, "--name", name, *parameters)
                self._execute(f"configure_{name}", *command)
        images = self.output / "raw" / NAME / "imagesTr"
        cases = sorted(path.name.removesuffix("_0000.nii.gz") for path in images.glob("*_0000.nii.gz"))
        parts = [[case] for case in cases]
        if settings["num_folds"]:
            shuffled = np.random.default_rng(0).permutation(cases)
            parts = [part.tolist() for part in np.array_split(shuffled, settings["num_folds"])]
        splits = [{"train": [case for case in cases if case not in part], "val": sorted(part)} for part in parts]
        for fold, split in enumerate(splits):
            folder = self.output / "left_out" / str(fold)
            folder.mkdir(parents=True)
            for case in split["val"]:
                for path in images.glob(f"{case}_????.nii.gz"):
                    shutil.copy(path, folder)
        (self.output / "preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits, indent=4))

    def _parameters(self, arm: Arm) -> tuple[str, ...]:
        if arm.starts_from is None:
            return arm.parameters
        return (*arm.parameters, f"num_epochs={self.settings['in_time_epochs' if arm.in_time else 'upgrade_epochs']}")

    def train_and_predict(self, run: Run) -> None:
        arm, folder = ARMS[run.arm], model_folder(self.output, run)
        if arm.starts_from:
            start = run._replace(arm=arm.starts_from)
            self.train_and_predict(start)
            self._link_as_baseline(model_folder(self.output, start))
        self._once(
            f"train_{run}", run.seed, "nnUNetv2_train", NAME, configuration(run.arm), run.fold, "-tr", arm.trainer,
            "-p", PLANS, "-device", self.settings["device"], *resuming(folder / f"fold_{run.fold}"),
        )  # fmt: skip
        self._once(
            f"predict_{run}", run.seed, "nnUNetv2_predict_from_modelfolder", "-m", folder, "-f", run.fold,
            "-i", self.output / "left_out" / str(run.fold), "-o", prediction_folder(self.output, run),
            "-device", self.settings["device"], "-npp", "1", "-nps", "1", "--disable_tta", "-step_size", "0.75",
        )  # fmt: skip

    def _link_as_baseline(self, folder: Path) -> None:
        """Link the folder to where `backbone_checkpoint=auto` looks for nnU-Net's own trainer."""
        link = folder.with_name("__".join(["nnUNetTrainer", *folder.name.split("__")[1:]]))
        if not link.is_symlink():
            link.symlink_to(folder.name)

    def _once(self, name: str, seed: int, *command: object) -> None:
        """Success leaves a stamp, with the seconds that it took."""
        stamp = stamp_file(self.output, name)
        if stamp.exists():
            return
        seconds = self._execute(
            name, *command, EXPERIMENT_SEED=str(seed), nnUNet_results=str(results_folder(self.output, seed)),
            nnUNet_n_proc_DA="0",  # batches from this process alone can be reproduced
        )  # fmt: skip
        stamp.write_text(str(seconds))

    def _execute(self, name: str, *command: object, **environment: str) -> float:
        click.echo(f"{time.strftime('%H:%M:%S')}  {name}", err=True)
        start, log = time.monotonic(), self.output / "log" / f"{name}.txt"
        with log.open("a") as file:
            status = subprocess.run(
                list(map(str, command)), env=self.environment | environment, stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, pass_fds=[self.lock.fileno()], check=False,
            ).returncode  # fmt: skip
        if status:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise click.ClickException(f"{name} has ended with exit code {status}. The end of {log}:\n{end}")
        return time.monotonic() - start


def configuration(arm: str) -> str:
    return arm if ARMS[arm].parameters or ARMS[arm].starts_from else CONFIGURATION


def results_folder(output: Path, seed: int) -> Path:
    """nnU-Net keeps one training of a trainer, configuration and fold."""
    return output / f"results_seed_{seed}"


def model_folder(output: Path, run: Run) -> Path:
    return results_folder(output, run.seed) / NAME / f"{ARMS[run.arm].trainer}__{PLANS}__{configuration(run.arm)}"


def prediction_folder(output: Path, run: Run) -> Path:
    return output / "predicted" / f"{run.arm}_seed_{run.seed}"


def stamp_file(output: Path, name: str) -> Path:
    return output / "done" / name


def left_out_cases(output: Path) -> list[list[str]]:
    """Cases that each fold leaves out."""
    splits = json.loads((output / "preprocessed" / NAME / "splits_final.json").read_text())
    return [split["val"] for split in splits]


def resuming(fold: Path) -> list[str]:
    """`--c` if there is a checkpoint. What a killed training has not written to its end is removed."""
    checkpoints = list(fold.glob("checkpoint_*.pth"))
    for path in checkpoints:
        if not zipfile.is_zipfile(path):
            path.unlink()
    return ["--c"] if any(path.exists() for path in checkpoints) else []


def report(output: Path) -> None:
    path = output / "settings.json"
    if not path.exists():
        raise click.ClickException(f"{output} has no settings.json: nothing has been trained there.")
    settings = json.loads(path.read_text())
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
    by_metric = [[scores[region][metric] for region in REGIONS] for metric in METRICS]
    return Result(run, case, np.array(by_metric, float), trained, seconds)


def as_json(result: Result) -> dict[str, Any]:
    scores = [[None if np.isnan(value) else value for value in values] for values in result.scores.tolist()]
    return {
        **result.run._asdict(),
        "case": result.case,
        **{metric: dict(zip(REGIONS, values, strict=True)) for metric, values in zip(METRICS, scores, strict=True)},
        "training_seconds": result.training_seconds,
        "prediction_seconds": result.prediction_seconds,
    }


def markdown(settings: dict[str, Any], metrics: str, results: list[Result]) -> Iterator[str]:
    weights = settings["sam2_checkpoint"]
    patch, spacing = ("×".join(format(side, "g") for side in settings[key]) for key in ("patch_size", "spacing"))
    yield "SAM2's weights are random." if weights == "random" else f"SAM2's weights: {weights}."
    yield (
        f"Patches of {patch} voxels of {spacing} mm, {BATCH_SIZE} a batch, {settings['epochs']} epochs of "
        f"{settings['iterations']} iterations ({settings['upgrade_epochs']} more on nnU-Net), "
        f"`sam2_image_size={settings['sam2_image_size']}`, device {settings['device']}. "
        "Mean ± standard deviation over left-out cases and seeds."
    )
    yield metrics
    by_arm = {name: [result for result in results if result.run.arm == name] for name in ARMS}
    against = next((name for name in REFERENCES if by_arm[name]), REFERENCES[0])
    reference = {(*result.run[1:], result.case): result.scores for result in by_arm[against]}
    for index, metric in enumerate(METRICS):
        header = ["arm", "cases", *REGIONS, "mean", f"mean, less {ARMS[against].title}"]
        yield from ("", f"### {metric}", "")
        yield from table(header, (row(there, index, reference) for there in by_arm.values() if there))
    yield from ("", "### Time", "")
    yield "Minutes for the epochs of a training; seconds for the command of a prediction, from its start to its end."
    times = (
        [
            ARMS[name].title,
            spread([result.training_seconds / 60 for result in there], ".1f"),
            spread([result.prediction_seconds for result in there], ".0f"),
        ]
        for name, there in by_arm.items()
        if there
    )
    yield from ("", *table(["arm", "training (min)", "prediction (s)"], times))
    yield from ("", f"### Each run: {' / '.join(METRICS)}", "")
    each = (
        [
            ARMS[result.run.arm].title,
            result.case,
            str(result.run.seed),
            *(" / ".join(map(format, values.tolist(), METRICS.values())) for values in result.scores.T),
        ]
        for result in results
    )
    yield from table(["arm", "left-out case", "seed", *REGIONS], each)


def row(results: list[Result], metric: int, reference: dict[tuple, np.ndarray]) -> list[str]:
    """Row of one arm, compared with the arm of reference run by run."""
    scores = np.stack([result.scores[metric] for result in results])
    gains = [
        np.nanmean(result.scores[metric] - reference[key][metric])
        for result in results
        if (key := (*result.run[1:], result.case)) in reference
    ]
    form = list(METRICS.values())[metric]
    columns = [spread(values, form) for values in (*scores.T, np.nanmean(scores, axis=1))]
    return [ARMS[results[0].run.arm].title, str(len(results)), *columns, spread(gains, f"+{form}")]


def spread(values: Sequence[float] | np.ndarray, form: str) -> str:
    there = np.array(values)[~np.isnan(values)]
    if not there.size:
        return "none"
    return format(there.mean(), form) + (f" ± {there.std(ddof=1):{form.lstrip('+')}}" if there.size > 1 else "")


def table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
