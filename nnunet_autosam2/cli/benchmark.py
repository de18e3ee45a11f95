"""`autosam2 benchmark`: models side by side, from training to the report."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from nnunet_autosam2.benchmark.ablations import ABLATIONS, ALL, find_ablations
from nnunet_autosam2.errors import DatasetError, InstallationError, TrainingError, require_distinct
from nnunet_autosam2.evaluation.challenges import CHALLENGES, challenge_for


class ManyValues(click.Command):
    """`--folds 0 1 2` as well as `--folds 0 --folds 1 --folds 2`, as nnU-Net's commands take it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._repeated(args)))

    def _repeated(self, args: list[str]) -> Iterator[str]:
        multiple = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        option = None
        for i, arg in enumerate(args):
            if arg.startswith("-"):
                option = arg if arg in multiple else None
            elif option is not None and args[i - 1] != option:
                yield option
            yield arg


@click.command(
    cls=ManyValues,
    short_help="Train, evaluate and compare models fold by fold.",
    epilog="Example: autosam2 benchmark -d 21 --trainers nnUNetTrainer nnUNetTrainerAutoSAM2 --folds 0 1 2 3 4",
)
@click.option("-d", "--dataset", required=True, help="ID or name of a preprocessed dataset.")
@click.option(
    "--trainers", multiple=True, metavar="NAME...",
    help="The first is what the others are compared with. TRAINER, or TRAINER__PLANS__CONFIGURATION. "
         "Default: nnUNetTrainer, with --ablations or --pretrained.",
)  # fmt: skip
@click.option(
    "--ablations", multiple=True, metavar="NAME...", type=click.Choice([ALL, *ABLATIONS]),
    help="Upgrades of a trained nnU-Net, each with another part of what SAM2 gives: all, or some of "
         f"{', '.join(ABLATIONS)}. Each gets a configuration of its own in the plans.",
)  # fmt: skip
@click.option(
    "--pretrained", multiple=True, metavar="NAME=FILE...",
    help="Encoders from elsewhere in the planned network, in nnU-Net's layout; each with SAM2 and without it.",
)  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True,
              help="Trainings of each model on each fold. Differences then hold for further ones.")  # fmt: skip
@click.option("--folds", multiple=True, type=click.IntRange(0), default=(0, 1, 2, 3, 4), metavar="NUMBER...",
              help="Default: 0 1 2 3 4.")  # fmt: skip
@click.option("-c", "--configuration", default="3d_fullres", show_default=True)
@click.option("-p", "--plans", default="nnUNetPlans", show_default=True, help="Plans identifier of nnU-Net.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Default: benchmark_DATASET.")
@click.option("--device", type=click.Choice(["cuda", "cpu", "mps"]), default="cuda", show_default=True)
@click.option(
    "--executor", type=click.Choice(["local", "slurm", "debug"]), default="local", show_default=True,
    help="This machine, a SLURM cluster with a job per fold, or one fold after the other in this process.",
)  # fmt: skip
@click.option("--at-once", type=click.IntRange(1), help="Folds at a time. Default: one per GPU here; on SLURM all.")
@click.option("--slurm", multiple=True, metavar="KEY=VALUE...", help="For sbatch, as in partition=gpu time=2880.")
@click.option("--timed-cases", type=click.IntRange(0), default=3, show_default=True,
              help="Cases per fold that are predicted once more, one by one, to time them.")  # fmt: skip
@click.option("--challenge", type=click.Choice(list(CHALLENGES)),
              help="Challenge of BraTS whose rules count. Default: gli, MenRT for a gross tumor volume.")  # fmt: skip
@click.option("--num-processes", type=click.IntRange(1), help="Cases to evaluate at a time. Default: one per CPU core.")
@click.option("--evaluate-only", is_flag=True, help="Train nothing: compare what is there.")
@click.option("--viewer-cases", type=click.IntRange(0), default=3, show_default=True, help="In the report.")
def command(
    dataset: str,
    trainers: tuple[str, ...],
    ablations: tuple[str, ...],
    pretrained: tuple[str, ...],
    repeats: int,
    folds: tuple[int, ...],
    configuration: str,
    plans: str,
    output: Path | None,
    device: str,
    executor: str,
    at_once: int | None,
    slurm: tuple[str, ...],
    timed_cases: int,
    challenge: str | None,
    num_processes: int | None,
    evaluate_only: bool,
    viewer_cases: int,
) -> None:
    """Train each trainer on each fold with nnU-Net's commands, unless that is done, evaluate its validation (BraTS by
    the metrics of its challenges, other labels by MONAI), and write tables, statistics and a report with a viewer.

    It can be stopped at any time: started again, it goes on. A fold that fails is reported and does not stop the rest.
    """
    if not (trainers or ablations or pretrained):
        raise click.UsageError("Nothing to compare: name --trainers, --ablations all, or --pretrained.")
    require_distinct(folds, "--folds")
    parameters = _slurm_parameters(slurm)
    # These take seconds to import.
    from nnunet_autosam2.benchmark import record
    from nnunet_autosam2.benchmark.dataset import find_legend, find_numbering, find_splits, find_training_cases
    from nnunet_autosam2.benchmark.fold_job import FoldJob
    from nnunet_autosam2.benchmark.models import find_models
    from nnunet_autosam2.benchmark.pretrained import find_pretrained
    from nnunet_autosam2.benchmark.repeats import find_repeats
    from nnunet_autosam2.benchmark.schedule import require_executor, run_jobs
    from nnunet_autosam2.dataset_conversion.patients import leaks
    from nnunet_autosam2.evaluation.brats_metrics import require_brats_evaluation
    from nnunet_autosam2.report.niivue import load_niivue
    from nnunet_autosam2.report.write import write_report
    from nnunet_autosam2.show.inside import find_device
    from nnunet_autosam2.support.staging import require_writable
    from nnunet_autosam2.trainers.backbone import BASELINE

    if viewer_cases:
        load_niivue()  # from now on it is in the cache
    if not evaluate_only:
        require_executor(executor, parameters)
    models = find_models(dataset, trainers or (BASELINE,), plans, configuration)
    models += find_ablations(dataset, ablations, plans, configuration) if ablations else []
    models += find_pretrained(dataset, pretrained, plans, configuration) if pretrained else []
    models += find_repeats(models, repeats)
    numbering = find_numbering(models)
    challenge = challenge_for(numbering.regions, challenge)
    if numbering.is_brats:
        require_brats_evaluation()
    if executor != "slurm":
        find_device(device)
    cases = find_training_cases(models[0].dataset)
    splits = find_splits(models[0].dataset, folds, cases)
    warnings = list(leaks(splits, folds))
    for warning in warnings:
        click.secho(f"WARNING: {warning}", fg="red", bold=True, err=True)
    output = (output or Path(f"benchmark_{models[0].dataset}")).absolute()
    require_writable(output)
    output.mkdir(parents=True, exist_ok=True)
    jobs = [
        FoldJob(
            model, fold, device,
            {case: [str(path) for path in cases[case].images.values()] for case in splits[fold]["val"][:timed_cases]},
            output,
        )
        for fold in folds for model in models
    ]  # fmt: skip
    unfinished = [job for job in jobs if not job.is_done]
    if evaluate_only:
        errors = {job: "not trained yet" for job in jobs if not job.is_validated}
    else:
        click.echo(f"{len(jobs) - len(unfinished)} of {len(jobs)} folds are done. Logs: {output / 'logs'}", err=True)
        signal.signal(signal.SIGTERM, _stop)
        try:
            errors = run_jobs(unfinished, executor, at_once or _places(executor, device), output / "jobs", parameters)
        except KeyboardInterrupt:
            _stop()
        except OSError as error:
            raise TrainingError(f"{output / 'jobs'} cannot be written: {error}. Start it again to go on.") from error
    benchmark = record.collect(models, jobs, errors, cases, numbering, challenge, num_processes)
    benchmark.warnings, benchmark.labels = warnings, find_legend(benchmark.dataset)
    record.write(benchmark, output)
    click.echo("\n\n".join(record.markdown(benchmark)))
    try:
        index = write_report(output, viewer_cases)
    except (DatasetError, InstallationError) as error:
        if not viewer_cases:
            raise
        click.echo(f"No viewer: {error}", err=True)
        index = write_report(output, 0)
    click.echo(f"\nReport: {index} (it opens by itself, without a server)")
    missing = [
        f"{model.name}__fold_{fold.fold}: {fold.error}"
        for model, of_model in zip(models, benchmark.models, strict=True)
        for fold in of_model.failed
    ]
    if missing:
        raise TrainingError("\n".join([f"{len(missing)} of {len(jobs)} folds are missing.", *missing]))


def _slurm_parameters(assignments: tuple[str, ...]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{assignment} is not KEY=VALUE.", param_hint="--slurm")
        if key in parameters:
            raise click.BadParameter(f"{key} is given twice: give it once.", param_hint="--slurm")
        parameters[key] = int(value) if value.isdecimal() else value
    return parameters


def _places(executor: str, device: str) -> int | None:
    """Jobs at a time; None: no limit."""
    import torch

    if executor == "slurm":
        return None
    return max(torch.cuda.device_count(), 1) if device == "cuda" and executor == "local" else 1


def _stop(*_: object) -> NoReturn:
    raise click.ClickException("Stopped. Start it again to go on.")
