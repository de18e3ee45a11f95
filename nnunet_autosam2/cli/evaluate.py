"""`autosam2 evaluate`: segmentations against their truth, by the metrics of the BraTS challenges or by MONAI."""

from collections.abc import Callable
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from nnunet_autosam2.evaluation.challenges import CHALLENGES, challenge_for, rules
from nnunet_autosam2.evaluation.numbering import NUMBERINGS

OPTIONS = (
    click.argument("predictions", type=click.Path(path_type=Path)),
    click.argument("truth", type=click.Path(path_type=Path), required=False),
    click.option(
        "--challenge",
        type=click.Choice(list(CHALLENGES)),
        help="Challenge of BraTS whose rules count. Default: gli, MenRT for a gross tumor volume.",
    ),
    click.option(
        "--labels",
        type=click.Choice(list(NUMBERINGS)),
        help="Numbering of predictions and truths. Default: as dataset.json beside them says.",
    ),
    click.option("--chill", is_flag=True, help="Leave out cases that have a truth and no prediction."),
    click.option(
        "-np", "--num-processes", type=click.IntRange(min=1), help="Cases at a time. Default: the number of CPU cores."
    ),
)
"""Arguments and options of the commands that compare predictions with their truth"""


def options_of_pairs(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command `OPTIONS`, in their order."""
    return reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), function)


@click.command(
    short_help="Score segmentations, of BraTS by the metrics of its challenges.",
    epilog="Example: autosam2 evaluate RESULTS_FOLDER, or: autosam2 evaluate predicted labels -o scores",
)
@options_of_pairs
@click.option("-o", "--output", type=click.Path(path_type=Path), help="New folder. Default: PREDICTIONS/evaluation.")
def command(
    predictions: Path,
    truth: Path | None,
    output: Path | None,
    challenge: str | None,
    labels: str | None,
    chill: bool,
    num_processes: int | None,
) -> None:
    """Score PREDICTIONS against the files of the same names in the folder TRUTH.

    PREDICTIONS is a folder of segmentations, nnU-Net's fold_X/validation, or the results folder that holds fold_0,
    fold_1, …, whose validation cases are taken together. For folds TRUTH is found by itself.

    Prints mean ± sd of Dice, IoU, HD95, NSD, sensitivity and the lesion-wise metrics in WT, TC and ET, by the package
    brats-evaluation, or of the first four in the labels and regions of another data set, by MONAI. Writes scores.csv
    and scores.json with every case.
    """
    from nnunet_autosam2.dataset_conversion.patients import leaks
    from nnunet_autosam2.evaluation.brats_metrics import require_brats_evaluation
    from nnunet_autosam2.evaluation.numbering import choose_numbering
    from nnunet_autosam2.evaluation.pairs import find_pairs
    from nnunet_autosam2.evaluation.scoring import evaluate
    from nnunet_autosam2.evaluation.summary import table, write_scores
    from nnunet_autosam2.support.staging import staged_folder

    found = find_pairs(predictions, truth, chill)
    files = [file for pair in found.pairs for file in (pair.prediction, pair.truth)]
    numbering, reason = choose_numbering(labels, found.dataset_jsons, files)
    challenge = challenge_for(numbering.regions, challenge)
    click.echo(f"Labels: {numbering} ({reason})")
    folds_known = [int(fold) for fold in found.folds if fold.isdecimal() and int(fold) < len(found.splits)]
    warnings = list(leaks(found.splits, folds_known))
    for warning in warnings:
        click.secho(f"WARNING: {warning}", fg="red", bold=True, err=True)
    output = output or predictions / "evaluation"
    about: dict[str, Any] = {"folds": found.folds, "rules": rules(challenge, numbering.is_brats)}
    if numbering.is_brats:
        about |= {"challenge": challenge, "brats-evaluation": require_brats_evaluation()}
        by = f"brats-evaluation {about['brats-evaluation']} ({challenge})"
    else:
        about["monai"] = version("monai")
        by = f"MONAI {about['monai']}"
    about |= {"warnings": warnings, "labels": numbering.regions, "labels_from": reason}
    with staged_folder(output) as staged:
        scores = evaluate(found.pairs, challenge, numbering, num_processes)
        write_scores(staged, scores, about)
    folds = f" of fold {', '.join(found.folds)}" if found.folds else ""
    click.echo(f"Mean ± sd of {len(scores)} cases{folds}, by {by}\n")
    click.echo(table(scores))
    click.echo("\n" + "\n".join(about["rules"]))
    click.echo(f"Every case: {output / 'scores.csv'}, {output / 'scores.json'}")
