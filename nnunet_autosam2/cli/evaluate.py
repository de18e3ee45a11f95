"""`autosam2 evaluate`: segmentations against their truth, by the metrics of the BraTS challenges."""

from pathlib import Path

import click

from nnunet_autosam2.evaluation.challenges import CHALLENGES, rules
from nnunet_autosam2.evaluation.regions import NUMBERINGS


@click.command(
    short_help="Score segmentations by the metrics of the BraTS challenges.",
    epilog="Example: autosam2 evaluate RESULTS_FOLDER, or: autosam2 evaluate predicted labels -o scores",
)
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("truth", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="New folder. Default: PREDICTIONS/evaluation.")
@click.option(
    "--challenge", type=click.Choice(list(CHALLENGES)), default="gli", show_default=True, help="Whose rules to take."
)
@click.option(
    "--labels",
    type=click.Choice(list(NUMBERINGS)),
    help="Numbering of predictions and truths. Default: dataset.json beside them, else nnunet (convert-brats).",
)
@click.option("--chill", is_flag=True, help="Leave out cases that have a truth and no prediction.")
@click.option(
    "-np", "--num-processes", type=click.IntRange(min=1), help="Cases at a time. Default: the number of CPU cores."
)
def command(
    predictions: Path,
    truth: Path | None,
    output: Path | None,
    challenge: str,
    labels: str | None,
    chill: bool,
    num_processes: int | None,
) -> None:
    """Score PREDICTIONS against the files of the same names in the folder TRUTH, with the package brats-evaluation.

    PREDICTIONS is a folder of segmentations, nnU-Net's fold_X/validation, or the results folder that holds fold_0,
    fold_1, …, whose validation cases are taken together. For folds TRUTH is found by itself.

    Prints mean ± sd of Dice, IoU, HD95, NSD, sensitivity and the lesion-wise metrics in WT, TC and ET, and writes
    scores.csv and scores.json with every case.
    """
    from nnunet_autosam2.evaluation.brats_metrics import evaluate, require_brats_evaluation
    from nnunet_autosam2.evaluation.pairs import find_pairs
    from nnunet_autosam2.evaluation.regions import numbering_of_dataset
    from nnunet_autosam2.evaluation.summary import table, write_scores
    from nnunet_autosam2.staging import staged_folder

    version = require_brats_evaluation()
    found = find_pairs(predictions, truth, chill)
    if labels is None and found.dataset_json is not None:
        numbering = numbering_of_dataset(found.dataset_json)
    else:
        numbering = NUMBERINGS[labels or "nnunet"]
    output = output or predictions / "evaluation"
    about = {"challenge": challenge, "brats-evaluation": version, "folds": found.folds, "rules": rules(challenge)}
    with staged_folder(output) as staged:
        scores = evaluate(found.pairs, challenge, numbering, num_processes)
        write_scores(staged, scores, about)
    folds = f" of fold {', '.join(found.folds)}" if found.folds else ""
    click.echo(f"Mean ± sd of {len(scores)} cases{folds}, by brats-evaluation {version} ({challenge})\n")
    click.echo(table(scores))
    click.echo("\n" + "\n".join(rules(challenge)))
    click.echo(f"Every case: {output / 'scores.csv'}, {output / 'scores.json'}")
