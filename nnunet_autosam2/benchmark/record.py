"""What the folds have come to: scores, costs and comparisons, in the form that the report reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path

from pydantic import TypeAdapter

from nnunet_autosam2.benchmark.comparison import compare
from nnunet_autosam2.benchmark.fold_job import MADE_AGAIN, FoldJob
from nnunet_autosam2.benchmark.models import Model, titles
from nnunet_autosam2.checkpoint import read_nnunet_checkpoint, training_log
from nnunet_autosam2.evaluation.brats_metrics import METRICS, Scores, evaluate
from nnunet_autosam2.evaluation.pairs import find_pairs
from nnunet_autosam2.evaluation.regions import numbering_of_dataset
from nnunet_autosam2.json_files import checked, read_json
from nnunet_autosam2.report import benchmark as report
from nnunet_autosam2.report.tables import OVERLAP, Table, cost_table, score_table
from nnunet_autosam2.staging import replace_file

COMPARED = ("Dice", "HD95")
CURVES = {"train_loss": "train_losses", "val_loss": "val_losses", "ema_fg_dice": "ema_fg_dice"}
"""Ours: nnU-Net's"""


def collect(
    models: Sequence[Model],
    jobs: Sequence[FoldJob],
    errors: Mapping[FoldJob, str],
    cases: Mapping[str, report.CaseFiles],
    challenge: str = "gli",
    num_processes: int | None = None,
) -> report.Benchmark:
    """Evaluates what has not been evaluated, and compares every model with the first.

    Args:
        errors: of the jobs that have failed.
        challenge: of BraTS, whose rules the scores follow.
        num_processes: cases to evaluate at a time.

    Raises:
        AutoSAM2Error: a prediction cannot be evaluated.
    """
    evaluated = partial(_evaluated, challenge=challenge, num_processes=num_processes)
    by_title = dict(zip(titles(models), models, strict=True))
    records = [
        _model(title, model, [job for job in jobs if job.model == model], errors, evaluated)
        for title, model in by_title.items()
    ]
    scores = {record.title: {result.case: result.scores for result in record.results()} for record in records}
    found = {result.case for record in records for result in record.results()}
    return report.Benchmark(
        dataset=models[0].dataset,
        plans=", ".join(sorted({model.plans for model in models})),
        device=jobs[0].device,
        created=datetime.now(timezone.utc),
        models=records,
        cases={case: files for case, files in cases.items() if case in found},
        comparisons=list(_comparisons(scores)),
    )


def write(benchmark: report.Benchmark, output: Path) -> None:
    """`benchmark.json`, `scores.csv` and `results.md`."""
    replace_file(output / report.FILE, benchmark.model_dump_json(indent=2))
    replace_file(output / "results.md", "\n\n".join(markdown(benchmark)) + "\n")
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["model", "fold", "case", "region", *METRICS])
    writer.writerows(
        [model.title, fold.fold, result.case, region, *map(scores.get, METRICS)]
        for model in benchmark.models
        for fold in model.folds
        for result in fold.cases
        for region, scores in result.scores.items()
    )
    replace_file(output / "scores.csv", table.getvalue())


def markdown(benchmark: report.Benchmark) -> Iterator[str]:
    """Overlap and cost; the report has the rest."""
    tables = [score_table(benchmark, OVERLAP, "Overlap with the truth, mean ± sd"), cost_table(benchmark)]
    yield from (_markdown(table) for table in tables if table is not None)


def _markdown(table: Table) -> str:
    groups = [name for name, span in table.groups for _ in range(span)] or [""] * len(table.columns)
    header = [
        table.heading,
        *(f"{group} {column}".strip() for group, column in zip(groups, table.columns, strict=True)),
    ]
    rows = [
        [
            ", ".join(filter(None, (row.title, row.note, row.failed))),
            *(" ".join([cell.text, *cell.notes]) for cell in row.cells),
        ]
        for row in table.rows
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join([f"**{table.caption}**", "", *lines])


def _model(
    title: str,
    model: Model,
    jobs: Sequence[FoldJob],
    errors: Mapping[FoldJob, str],
    evaluated: Callable[[FoldJob], Scores],
) -> report.Model:
    parameters = [found["parameters"] for job in jobs if (found := job.measured("prediction"))]
    return report.Model(
        title=title,
        trainer=model.trainer,
        configuration=model.configuration,
        slice_fraction=model.slice_fraction,
        parameters=report.Parameters(**parameters[0]) if parameters else None,
        folds=[_fold(job, errors.get(job), evaluated) for job in jobs],
    )


def _fold(job: FoldJob, error: str | None, evaluated: Callable[[FoldJob], Scores]) -> report.Fold:
    fold = report.Fold(
        fold=job.fold,
        training_seconds=None,
        peak_memory_bytes=job.measured("training").get("peak_memory_bytes"),
        error=error,
    )
    if not job.is_validated:
        return fold
    checkpoint = job.folder / "checkpoint_final.pth"
    log = training_log(read_nnunet_checkpoint(checkpoint), checkpoint)
    fold.training_seconds = log.seconds
    fold.curves = report.Curves(**{name: getattr(log, key) for name, key in CURVES.items()})
    seconds = job.measured("prediction").get("seconds", {})
    fold.cases = [
        report.CaseResult(
            case=case,
            prediction=job.folder / "validation" / f"{case}.nii.gz",
            seconds=seconds.get(case),
            scores=scores,
        )
        for case, scores in evaluated(job).items()
    ]
    return fold


def _evaluated(job: FoldJob, challenge: str, num_processes: int | None) -> Scores:
    """Kept from last time, unless nnU-Net has validated again since."""
    kept = job.output / "scores" / f"{job.name}__{challenge}.json"
    summary = job.folder / "validation" / "summary.json"
    if not kept.is_file() or kept.stat().st_mtime < summary.stat().st_mtime:
        kept.parent.mkdir(exist_ok=True)
        numbering = numbering_of_dataset(job.model.folder / "dataset.json")
        replace_file(kept, json.dumps(evaluate(find_pairs(job.folder).pairs, challenge, numbering, num_processes)))
    return checked(read_json(kept), TypeAdapter(dict[str, dict[str, dict[str, report.Score]]]), kept, MADE_AGAIN)


def _comparisons(scores: Mapping[str, Scores]) -> Iterator[report.Comparison]:
    reference, *others = scores
    for model, metric, region in product(others, COMPARED, (*report.REGIONS, report.MEAN)):
        difference = compare(scores[model], scores[reference], region, metric)
        if difference is not None:
            yield report.Comparison(
                model=model, reference=reference, region=region, metric=metric, **difference._asdict()
            )
