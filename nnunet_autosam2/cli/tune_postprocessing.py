"""`autosam2 tune-postprocessing`: finds what is too small to be believed, on the predictions of a cross-validation."""

from importlib.metadata import version
from pathlib import Path

import click

from nnunet_autosam2.cli.evaluate import options_of_pairs

METRIC_HELP = (
    "What to raise in the mean over regions: Dice, IoU, HD95, NSD, and of BraTS 'Lesion-wise Dice', 'Lesion-wise Dice, "
    "all', 'Lesion-wise NSD', 'Lesion-wise HD95'. Default: 'Lesion-wise Dice, all', in which missed and false lesions "
    "count 0; Dice for other labels."
)


@click.command(
    short_help="Find which small components and regions to take out.",
    epilog="Example: autosam2 tune-postprocessing RESULTS_FOLDER",
)
@options_of_pairs
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File. Default: in PREDICTIONS.")
@click.option("--metric", help=METRIC_HELP)
def command(
    predictions: Path,
    truth: Path | None,
    output: Path | None,
    metric: str | None,
    challenge: str | None,
    labels: str | None,
    chill: bool,
    num_processes: int | None,
) -> None:
    """Find, per region, the smallest component to keep, and of an inner region the smallest volume or share of the one
    around it, and write them down for `autosam2 postprocess`.

    PREDICTIONS and TRUTH are as for `autosam2 evaluate`; best the results folder with all folds. The table has the mean
    before, and after with what was found on the other folds alone: that is what to expect of new cases.
    """
    from nnunet_autosam2.evaluation.brats_metrics import ALL_LESIONS, METRICS, require_brats_evaluation
    from nnunet_autosam2.evaluation.challenges import challenge_for
    from nnunet_autosam2.evaluation.numbering import choose_numbering
    from nnunet_autosam2.evaluation.pairs import find_pairs
    from nnunet_autosam2.postprocessing.settings import NAME, Settings, write_settings
    from nnunet_autosam2.postprocessing.tuning import folds_of, tune
    from nnunet_autosam2.support.columns import aligned
    from nnunet_autosam2.support.staging import require_writable

    found = find_pairs(predictions, truth, chill)
    files = [file for pair in found.pairs for file in (pair.prediction, pair.truth)]
    numbering, reason = choose_numbering(labels, found.dataset_jsons, files)
    challenge = challenge_for(numbering.regions, challenge)
    possible = METRICS if numbering.is_brats else METRICS[:4]
    metric = metric or (ALL_LESIONS if numbering.is_brats else "Dice")
    if metric not in possible:
        raise click.UsageError(f"--metric {metric!r} is not possible: choose from {', '.join(map(repr, possible))}.")
    output = output or predictions / NAME
    require_writable(output.parent)
    click.echo(f"Labels: {numbering} ({reason})")
    folds = folds_of(found.pairs)
    tuned = tune(found.pairs, folds, numbering, challenge, metric, num_processes)
    means = tuned.means(metric)
    package = "brats-evaluation" if numbering.is_brats else "monai"
    of_folds = {
        name: {region: str(rule) for region, rule in rules.items()} for name, rules in tuned.rules_of_folds.items()
    }
    found_by = {
        "metric": metric,
        "challenge": challenge if numbering.is_brats else None,
        package: require_brats_evaluation() if numbering.is_brats else version("monai"),
        "cases": len(found.pairs),
        "folds": of_folds,
        "means": means,
    }
    settings = Settings(labels=dict(numbering.regions), outside=numbering.outside, rules=tuned.rules, found_by=found_by)
    write_settings(settings, output)
    click.echo(f"{metric}, mean of {len(found.pairs)} cases in {len(folds)} folds\n")
    rows = [["", "before", "after, by the other folds' rules", "after, by the rules of all"]]
    rows += [[region, *(_cell(value) for value in of_region.values())] for region, of_region in means.items()]
    click.echo(aligned(rows))
    click.echo("\nExpect the second figure of new cases; the third is of the cases that the rules were found on.")
    click.echo("A region that is rightly left out counts as the best; where nobody has it, the case does not count.\n")
    for region in numbering.regions:
        click.echo(f"{region}: {tuned.rules.get(region, 'nothing is taken out')}")
    click.echo(f"{output}: for autosam2 postprocess PREDICTED CLEANED --settings {output}")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
