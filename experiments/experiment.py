"""Does SAM2 help? Every arm on the same left-out cases, with the same plans and patches.

Cross-validation on labelled cases in BraTS layout: an arm trains on all cases but those of a fold and predicts these;
leave-one-out unless `--num-folds` says otherwise, and on fewer cases as well where `--training-cases` says so. All arms
see the same batches, and one nnU-Net a fold serves all arms that start from it. Everything is done by nnU-Net's
commands. What is done in OUTPUT is not done again and a training that was interrupted goes on, so a run can be stopped
and started again at any time. The report goes to the standard output, as Markdown, and into OUTPUT/report.json.

Usage: python -m experiments.experiment DATA OUTPUT [--num-folds 5] [--folds 2] [--seeds 2] [--device cuda]
    [--training-cases 20,100,all] [--sam2-checkpoint FILE] [--report-only] [--estimate CASES]
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np

from experiments.arms import ARMS
from experiments.estimate import MEASURED, basis, training_hours
from experiments.report import report
from experiments.runs import (
    BATCH_SIZE,
    CONFIGURATION,
    DATASET,
    NAME,
    PATH,
    PLANS,
    Run,
    batches_folder,
    configuration,
    epochs_of,
    left_out_cases,
    model_folder,
    prediction_folder,
    read_settings,
    results_folder,
    stamp_file,
    start_of,
    training_cases_of,
)
from nnunet_autosam2.support.checksum import file_checksum

ROOT = Path(__file__).resolve().parent.parent
TRAINERS = ROOT / "experiments" / "trainers"


class TrainingCases(click.ParamType):
    """Numbers by commas, None for all: `20,all` → `[20, None]`."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int | None]:
        words = str(value).split(",")
        if not all(word == "all" or (word.isdecimal() and int(word)) for word in words) or len({*words}) < len(words):
            self.fail(f"{value} is not possible: give different numbers or all, separated by commas.", param, ctx)
        return [None if word == "all" else int(word) for word in words]


@click.command()
@click.argument("data", type=click.Path(file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--arms", multiple=True, type=click.Choice(list(ARMS)), help="May be repeated. Default: all.")
@click.option("--num-folds", type=click.IntRange(2), help="Parts of the cases. Default: one a case.")
@click.option("--folds", type=click.IntRange(1), default=2, show_default=True, help="How many of them are trained.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Trainings of an arm and fold.")
@click.option(
    "--training-cases", type=TrainingCases(), default="all", show_default=True, metavar="N,…", help="Of each part."
)
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
@click.option("--val-iterations", type=click.IntRange(1), default=4, show_default=True, help="Of an epoch.")
@click.option("--initial-lr", default=1e-3, show_default=True, help="Of this project's trainers.")
@click.option("--full-prediction", is_flag=True, help="Mirrored, in steps of half a patch, as nnU-Net's default is.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True, help="For preprocessing.")
@click.option(
    "--augmentation-processes",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="More than 0 are faster, and arms no longer see the same batches.",
)
@click.option("--stored-batches", is_flag=True, help="Batches are made once for all arms, in much disk space.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trainings side by side.")
@click.option("--report-only", is_flag=True, help="Report what is there; the other options do not matter.")
@click.option("--estimate", type=click.IntRange(2), metavar="CASES", help="Tell how long it takes, and do nothing.")
def main(
    data: Path,
    output: Path,
    arms: tuple[str, ...],
    num_folds: int | None,
    folds: int,
    seeds: int,
    training_cases: list[int | None],
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
    val_iterations: int,
    initial_lr: float,
    full_prediction: bool,
    processes: int,
    augmentation_processes: int,
    stored_batches: bool,
    jobs: int,
    report_only: bool,
    estimate: int | None,
) -> None:
    """Train, predict and score each arm on the cases of DATA; everything is written below OUTPUT."""
    if not report_only:
        if sam2_checkpoint not in ("auto", "random"):
            sam2_checkpoint = str(Path(sam2_checkpoint).absolute())
        settings = {
            "data": str(data.absolute()),
            "device": device,
            "sam2_checkpoint": sam2_checkpoint,
            "sam2_sha256": None,
            "spacing": list(spacing),
            "patch_size": list(patch_size),
            "features": list(features),
            "sam2_image_size": sam2_image_size,
            "modalities": modalities,
            "num_folds": num_folds,
            "training_cases": training_cases,
            "epochs": epochs,
            "upgrade_epochs": upgrade_epochs or epochs,
            "in_time_epochs": in_time_epochs,
            "iterations": iterations,
            "val_iterations": val_iterations,
            "initial_lr": initial_lr,
            "full_prediction": full_prediction,
            "stored_batches": stored_batches,
        }
        of_all = itertools.product(range(seeds), range(folds * len(training_cases)), dict.fromkeys(arms) or ARMS)
        runs = [Run(arm, fold, seed) for seed, fold, arm in of_all]
        if estimate:
            tell_time(settings, runs, estimate)
            return
        if not data.is_dir():
            raise click.ClickException(f"{data} is not a folder.")
        if sam2_checkpoint not in ("auto", "random"):
            settings["sam2_sha256"] = sha256(Path(sam2_checkpoint))
        signal.signal(signal.SIGTERM, stop)
        experiment = Experiment(output.absolute(), settings, processes, augmentation_processes)
        experiment.prepare(folds)
        experiment.train_all(runs, jobs)
    report(output.absolute())


def sha256(path: Path) -> str:
    """
    Raises:
        click.ClickException: the file cannot be read.
    """
    try:
        return file_checksum(path)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from error


def stop(*_: object) -> NoReturn:
    """Raise an exception, so that the command at work ends, too."""
    raise click.ClickException("Stopped. Start it again to go on.")


class Experiment:
    """
    Raises:
        click.ClickException: OUTPUT is in use, or was started with other settings; a command has failed.
    """

    def __init__(self, output: Path, settings: dict[str, Any], processes: int, augmentation_processes: int) -> None:
        self.output, self.settings = output, settings
        self.processes, self.augmentation_processes = processes, augmentation_processes
        self.commands: set[subprocess.Popen] = set()
        self.stopped = False
        self.configuring = threading.Lock()
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
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            "nnUNet_raw": str(output / "raw"),
            "nnUNet_preprocessed": str(output / "preprocessed"),
            "nnUNet_extTrainer": str(TRAINERS),
            "nnUNet_def_n_proc": str(processes),
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
            there = read_settings(path)
            other = [f"{key} = {there.get(key)}" for key, value in self.settings.items() if there.get(key) != value]
            if other:
                raise click.ClickException(f"{self.output} was started with {', '.join(other)}: choose another folder.")
        else:
            for folder in ("raw", "preprocessed", "left_out"):
                shutil.rmtree(self.output / folder, ignore_errors=True)
                (self.output / folder).mkdir()
            self._convert_and_plan()
            path.write_text(json.dumps(self.settings, indent=4))
        if folds > (found := len(left_out_cases(self.output)) // len(self.settings["training_cases"])):
            raise click.ClickException(f"--folds {folds} is too many: there are {found}.")

    def _convert_and_plan(self) -> None:
        settings = self.settings
        self._execute(
            "convert", "autosam2", "convert-brats", settings["data"], "-d", DATASET, "-n", "Experiment",
            "--modalities", settings["modalities"],
        )  # fmt: skip
        images = self.output / "raw" / NAME / "imagesTr"
        cases = sorted(path.name.removesuffix("_0000.nii.gz") for path in images.glob("*_0000.nii.gz"))
        splits = make_splits(cases, settings["num_folds"], settings["training_cases"])
        for fold, split in enumerate(splits):
            folder = self.output / "left_out" / str(fold)
            folder.mkdir(parents=True)
            for case in split["val"]:
                for path in images.glob(f"{case}_????.nii.gz"):
                    (folder / path.name).symlink_to(path)
        self._execute(
            "preprocess", "nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", "3d_fullres",
            "-np", self.processes, "-npfp", self.processes,
            "-overwrite_target_spacing", *settings["spacing"], "-overwrite_plans_name", PLANS,
        )  # fmt: skip
        (self.output / "preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits, indent=4))
        first, most = settings["features"]
        self._configure(
            CONFIGURATION, "--batch-size", BATCH_SIZE,
            "--patch-size", *settings["patch_size"],
            "--base-features", first, "--max-features", most,
            f"sam2_checkpoint={settings['sam2_checkpoint']}", f"sam2_image_size={settings['sam2_image_size']}",
            f"num_epochs={settings['epochs']}", f"num_iterations_per_epoch={settings['iterations']}",
            f"num_val_iterations_per_epoch={settings['val_iterations']}", f"initial_lr={settings['initial_lr']}",
            f"early_stopping_patience={settings['epochs']}",  # so it never stops early
        )  # fmt: skip

    def _configure(self, name: str, *options: object) -> None:
        """Add a configuration to the plans, unless it is there."""
        command = ("autosam2", "configure", DATASET, "-p", PLANS, "--name", name)
        with self.configuring:
            plans = json.loads((self.output / "preprocessed" / NAME / f"{PLANS}.json").read_text())
            if name not in plans["configurations"]:
                self._execute(f"configure_{name}", *command, *options)

    def train_all(self, runs: Sequence[Run], jobs: int) -> None:
        """So many side by side, first those that others start from. The first error ends all."""
        with ThreadPoolExecutor(jobs) as pool, ThreadPoolExecutor(1) as beside:
            done: dict[Run, Future] = {}
            for run in dict.fromkeys([*filter(None, map(start_of, runs)), *runs]):
                start = start_of(run)
                done[run] = pool.submit(self.train_and_predict, run, done[start] if start else None)
            places = dict.fromkeys((run.fold, run.seed) for run in runs if self.settings["stored_batches"])
            made = [beside.submit(self._store_batches, *place) for place in places]
            try:
                for future in wait([*done.values(), *made], return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self._stop(pool, beside)
                raise

    def _stop(self, *pools: ThreadPoolExecutor) -> None:
        self.stopped = True
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self.commands):
            process.terminate()

    def _store_batches(self, fold: int, seed: int) -> None:
        settings = self.settings
        epochs = settings["epochs"] + max(settings["upgrade_epochs"], settings["in_time_epochs"])
        self._execute(
            f"batches_{fold}_{seed}", sys.executable, "-m", "experiments.stored_batches", NAME, PLANS, CONFIGURATION,
            fold, batches_folder(self.output, fold, seed), "--train", epochs * settings["iterations"],
            "--val", settings["val_iterations"], "--seed", seed, "--processes", self.processes,
            nnUNet_results=str(self.output / "batches" / "logs"),
        )  # fmt: skip

    def train_and_predict(self, run: Run, started: Future | None = None) -> None:
        """
        Args:
            started: the training that it starts from.
        """
        arm, folder = ARMS[run.arm], model_folder(self.output, run)
        if (name := configuration(run.arm)) != CONFIGURATION:
            epochs = f"num_epochs={epochs_of(arm, self.settings)}"
            self._configure(name, "--base", CONFIGURATION, *arm.parameters, *([epochs] if arm.starts_from else []))
        start = start_of(run)
        if start and started:
            started.result()
            self._link_as_baseline(model_folder(self.output, start))
        batches = {}
        if self.settings["stored_batches"]:
            before = self.settings["epochs"] * self.settings["iterations"] if start else 0
            folder_of_batches = batches_folder(self.output, run.fold, run.seed)
            batches = {"EXPERIMENT_BATCHES": str(folder_of_batches), "EXPERIMENT_FIRST_BATCH": str(before)}
        self._once(
            f"train_{run}", run.seed, "nnUNetv2_train", NAME, configuration(run.arm), run.fold, "-tr", arm.trainer,
            "-p", PLANS, "-device", self.settings["device"], *resuming(folder / f"fold_{run.fold}"), **batches,
        )  # fmt: skip
        workers = max(1, self.processes // 2)
        self._once(
            f"predict_{run}", run.seed, "nnUNetv2_predict_from_modelfolder", "-m", folder, "-f", run.fold,
            "-i", self.output / "left_out" / str(run.fold), "-o", prediction_folder(self.output, run),
            "-device", self.settings["device"], "-npp", workers, "-nps", workers,
            *([] if self.settings["full_prediction"] else ["--disable_tta", "-step_size", "0.75"]),
        )  # fmt: skip

    def _link_as_baseline(self, folder: Path) -> None:
        """Link the folder to where `backbone_checkpoint=auto` looks for nnU-Net's own trainer."""
        link = folder.with_name("__".join(["nnUNetTrainer", *folder.name.split("__")[1:]]))
        with contextlib.suppress(FileExistsError):
            link.symlink_to(folder.name)

    def _once(self, name: str, seed: int, *command: object, **environment: str) -> None:
        """Success leaves a stamp, with the seconds that it took."""
        stamp = stamp_file(self.output, name)
        if stamp.exists():
            return
        seconds = self._execute(
            name, *command, EXPERIMENT_SEED=str(seed), nnUNet_results=str(results_folder(self.output, seed)),
            nnUNet_n_proc_DA=str(self.augmentation_processes),  # of 0, batches can be reproduced; planning fails
            **environment,
        )  # fmt: skip
        stamp.write_text(str(seconds))

    def _execute(self, name: str, *command: object, **environment: str) -> float:
        if self.stopped:
            raise click.ClickException(f"{name} is left out, as all has been stopped.")
        click.echo(f"{time.strftime('%H:%M:%S')}  {name}", err=True)
        start, log = time.monotonic(), self.output / "log" / f"{name}.txt"
        with log.open("a") as file:
            process = subprocess.Popen(
                list(map(str, command)), env=self.environment | environment, stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, pass_fds=[self.lock.fileno()],
            )  # fmt: skip
            self.commands.add(process)
            status = process.wait()
            self.commands.discard(process)
        if status:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise click.ClickException(f"{name} has ended with exit code {status}. The end of {log}:\n{end}")
        return time.monotonic() - start


def make_splits(
    cases: list[str], num_folds: int | None, training_cases: Sequence[int | None]
) -> list[dict[str, list[str]]]:
    """nnU-Net's folds: each part of the cases is left out once for each number of training cases.

    Fewer training cases are some of those that more are.

    Raises:
        click.ClickException: there are not as many cases.
    """
    parts = [[case] for case in cases]
    if num_folds:
        if num_folds > len(cases):
            raise click.ClickException(f"--num-folds {num_folds} is too many: there are {len(cases)} cases.")
        shuffled = np.random.default_rng(0).permutation(cases)
        parts = [part.tolist() for part in np.array_split(shuffled, num_folds)]
    splits = []
    for part in parts:
        others = np.random.default_rng(1).permutation([case for case in cases if case not in part]).tolist()
        if (most := max(count or 0 for count in training_cases)) > len(others):
            raise click.ClickException(f"--training-cases {most} is too many: there are {len(others)} beside a part.")
        splits += [{"train": sorted(others[:count]), "val": sorted(part)} for count in training_cases]
    return splits


def resuming(fold: Path) -> list[str]:
    """`--c` if there is a checkpoint. What a killed training has not written to its end is removed."""
    checkpoints = list(fold.glob("checkpoint_*.pth"))
    for path in checkpoints:
        if not zipfile.is_zipfile(path):
            path.unlink()
    return ["--c"] if any(path.exists() for path in checkpoints) else []


def tell_time(settings: dict[str, Any], runs: list[Run], cases: int) -> None:
    """Tell what would be trained on so many cases, and for how long.

    Raises:
        click.ClickException: nothing has been measured on the device.
    """
    if settings["device"] not in MEASURED:
        raise click.ClickException(
            f"No training has been timed on {settings['device']}: only {' and '.join(MEASURED)}."
        )
    left_out = round(cases / settings["num_folds"]) if settings["num_folds"] else 1
    needed: dict[Run, None] = {}
    for run in runs:
        needed |= dict.fromkeys(filter(None, [start_of(run), run]))
    total = 0.0
    for run in needed:
        arm, count = ARMS[run.arm], training_cases_of(settings, run.fold) or cases - left_out
        hours = training_hours(settings, epochs_of(arm, settings), arm.asks_sam2, left_out)
        total += hours
        click.echo(f"{hours:7.1f} h  {run}: {arm.title}, {count} cases, {epochs_of(arm, settings)} epochs")
    click.echo(f"{total:7.1f} h  in all. {basis(settings['device'])}")


if __name__ == "__main__":
    main()
