"""Record of a benchmark: scores, costs and comparisons of its folds, in the form that the report reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path

from nnunet_autosam2.benchmark import results
from nnunet_autosam2.benchmark.comparison import compare, holm
from nnunet_autosam2.benchmark.fold_job import FoldJob
from nnunet_autosam2.benchmark.kept import KeptScores, read_kept
from nnunet_autosam2.benchmark.models import ComparedModel, titles
from nnunet_autosam2.benchmark.tables import OVERLAP, Table, comparison_tables, cost_table, score_table
from nnunet_autosam2.errors import AutoSAM2Error
from nnunet_autosam2.evaluation.brats_metrics import METRICS
from nnunet_autosam2.evaluation.challenges import rules
from nnunet_autosam2.evaluation.empty_regions import RULE
from nnunet_autosam2.evaluation.numbering import Numbering
from nnunet_autosam2.evaluation.pairs import find_pairs
from nnunet_autosam2.evaluation.scoring import Scores, evaluate
from nnunet_autosam2.support.access import entries
from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint, training_log
from nnunet_autosam2.support.staging import replace_file
from nnunet_autosam2.support.text import LINE, csv_cell, printable

COMPARED = ("Dice", "HD95")
CURVES = {"train_loss": "train_losses", "val_loss": "val_losses", "ema_fg_dice": "ema_fg_dice"}
"""Ours: nnU-Net's"""


def collect(
    models: Sequence[ComparedModel],
    jobs: Sequence[FoldJob],
    errors: Mapping[FoldJob, str],
    cases: Mapping[str, results.CaseFiles],
    numbering: Numbering,
    challenge: str,
    num_processes: int | None = None,
) -> results.Benchmark:
    """Evaluates what has not been evaluated, and compares every model with the first.

    Args:
        errors: of the jobs that have failed.
        numbering: of the data set's labels.
        challenge: of BraTS, whose rules the scores of its regions follow.
        num_processes: cases to evaluate at a time.

    A fold with a file that cannot be used has that as its `error`, and the others go on.
    """
    evaluated = partial(_evaluated, numbering=numbering, challenge=challenge, num_processes=num_processes)
    by_title = dict(zip(titles(models), models, strict=True))
    records = [
        _model(title, model, [job for job in jobs if job.model == model], errors, evaluated)
        for title, model in by_title.items()
    ]
    regions = list(numbering.regions)[:: -1 if numbering.is_brats else 1]
    scores: dict[str, list[Scores]] = {}
    for record in records:
        of_record = {result.case: result.scores for result in record.results()}
        scores.setdefault(record.repeat_of or record.title, []).append(of_record)
    found = {result.case for record in records for result in record.results()}
    return results.Benchmark(
        dataset=models[0].dataset,
        plans=", ".join(sorted({model.plans for model in models})),
        device=jobs[0].device,
        created=datetime.now(timezone.utc),
        models=records,
        cases={case: files for case, files in cases.items() if case in found},
        comparisons=list(_comparisons(scores, regions)),
        regions=regions,
        rules=[*rules(challenge, numbering.is_brats), RULE],
    )


def write(benchmark: results.Benchmark, output: Path) -> None:
    """`benchmark.json`, `scores.csv` and `results.md`."""
    replace_file(output / results.FILE, benchmark.model_dump_json(indent=2))
    replace_file(output / "results.md", "\n\n".join(markdown(benchmark)) + "\n")
    table = io.StringIO()
    writer = csv.writer(table)
    every = [result.scores for model in benchmark.models for result in model.results()]
    metrics = [metric for metric in METRICS if any(metric in scores for case in every for scores in case.values())]
    writer.writerow(["model", "fold", "case", "region", *metrics])
    writer.writerows(
        [*map(csv_cell, (model.title, fold.fold, result.case, region)), *map(scores.get, metrics)]
        for model in benchmark.models
        for fold in model.folds
        for result in fold.cases
        for region, scores in result.scores.items()
    )
    replace_file(output / "scores.csv", table.getvalue())


def markdown(benchmark: results.Benchmark) -> Iterator[str]:
    """Warnings, overlap, differences and cost, and how they count; the report has the rest."""
    yield from (f"**WARNING: {warning}**" for warning in benchmark.warnings)
    overlap = score_table(benchmark, OVERLAP, "Overlap with the truth, mean ± sd")
    for table in (overlap, *comparison_tables(benchmark), cost_table(benchmark)):
        if table is not None:
            yield _markdown(table)
    yield "\n".join(benchmark.rules)


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
    cells_of_rows = [[printable(cell).replace("|", r"\|") for cell in cells] for cells in (header, *rows)]
    cells_of_rows.insert(1, ["---"] * len(header))
    lines = [f"| {' | '.join(cells)} |" for cells in cells_of_rows]
    return "\n".join([f"**{table.caption}**", "", *lines])


def _model(
    title: str,
    model: ComparedModel,
    jobs: Sequence[FoldJob],
    errors: Mapping[FoldJob, str],
    evaluated: Callable[[FoldJob], Scores],
) -> results.ModelResults:
    parameters = [found.parameters for job in jobs if (found := job.prediction)]
    return results.ModelResults(
        title=title,
        trainer=model.trainer,
        configuration=model.configuration,
        repeat_of=model.repeat_of,
        slice_fraction=model.slice_fraction,
        parameters=parameters[0] if parameters else None,
        folds=[_fold(job, errors.get(job), evaluated) for job in jobs],
    )


def _fold(job: FoldJob, error: str | None, evaluated: Callable[[FoldJob], Scores]) -> results.FoldResults:
    training, prediction = job.training, job.prediction
    fold = results.FoldResults(
        fold=job.fold,
        training_seconds=None,
        peak_memory_bytes=training.peak_memory_bytes if training else None,
        error=error,
    )
    if not job.is_validated:
        return fold
    faults = [error] if error else []
    scores: Scores = {}
    try:
        checkpoint = job.folder / "checkpoint_final.pth"
        log = training_log(read_nnunet_checkpoint(checkpoint), checkpoint)
        fold.training_seconds = log.seconds
        fold.curves = results.Curves(**{name: getattr(log, key) for name, key in CURVES.items()})
    except AutoSAM2Error as fault:
        faults.append(str(fault))
    try:
        scores = evaluated(job)
    except (AutoSAM2Error, OSError) as fault:
        summary = job.folder / "validation" / "summary.json"
        faults.append(f"{fault} If it is a prediction, remove {summary}, and the fold is validated again.")
    fold.error = printable(" ".join(faults), LINE) if faults else None
    seconds = prediction.seconds if prediction else {}
    fold.cases = [
        results.CaseResults(
            case=case,
            prediction=job.folder / "validation" / f"{case}.nii.gz",
            seconds=seconds.get(case),
            scores=of_case,
        )
        for case, of_case in scores.items()
    ]
    return fold


def _evaluated(job: FoldJob, numbering: Numbering, challenge: str, num_processes: int | None) -> Scores:
    """Scores of a fold, kept from last time unless nnU-Net has validated again since."""
    file = job.output / "scores" / f"{job.name}__{challenge if numbering.is_brats else 'labels'}.json"
    validated = max(path.stat().st_mtime for path in entries(job.folder / "validation"))
    if file.is_file() and file.stat().st_mtime >= validated and (kept := read_kept(file, KeptScores)):
        return kept
    scores = evaluate(find_pairs(job.folder).pairs, challenge, numbering, num_processes)
    file.parent.mkdir(exist_ok=True)
    replace_file(file, json.dumps(scores))
    return scores


def _comparisons(scores: Mapping[str, Sequence[Scores]], regions: Sequence[str]) -> Iterator[results.Comparison]:
    reference, *others = scores
    for metric in COMPARED:
        found = {
            (model, region): difference
            for model, region in product(others, (*regions, results.MEAN))
            if (difference := compare(scores[model], scores[reference], region, metric)) is not None
        }
        corrected = holm([difference.p for difference in found.values()])
        for ((model, region), difference), p in zip(found.items(), corrected, strict=True):
            yield results.Comparison(
                model=model, reference=reference, region=region, metric=metric, p_corrected=p, **difference._asdict()
            )
