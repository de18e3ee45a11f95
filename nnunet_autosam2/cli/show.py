"""`autosam2 show`: what the network sees, how it prompts SAM2, and what comes back."""

from pathlib import Path

import click
from click.core import ParameterSource

from nnunet_autosam2.errors import DatasetError

OPTIONS_OF = {"-m": ("fold", "checkpoint"), "-d": ("configuration", "plans", "trainer")}


@click.command(
    short_help="Draw SAM2's prompts and all masks of a case.",
    epilog="Example: autosam2 show imagesTs/BraTS2021_00042 -m RESULTS_FOLDER --slices 4",
)
@click.argument("case", type=click.Path(path_type=Path))
@click.option("-m", "--model", "results", type=click.Path(path_type=Path), help="Results folder of a trained hybrid.")
@click.option("-f", "--fold", default="0", show_default=True, help="With -m: fold, or all.")
@click.option("--checkpoint", default="checkpoint_final.pth", show_default=True, help="With -m: file in the fold.")
@click.option("-d", "--dataset", help="ID or name of a planned dataset, for an untrained hybrid.")
@click.option("-c", "--configuration", default="3d_fullres", show_default=True, help="With -d.")
@click.option("-p", "--plans", default="nnUNetPlans", show_default=True, help="With -d: plans identifier of nnU-Net.")
@click.option("-tr", "--trainer", default="nnUNetTrainerAutoSAM2", show_default=True, help="With -d.")
@click.option("--prompt-with-truth", is_flag=True, help="Slices and prompts from the truth, as always with -d.")
@click.option(
    "--truth", type=click.Path(path_type=Path), help="Label file. Default: in labelsTr if CASE is in imagesTr."
)
@click.option(
    "--slices", type=click.IntRange(min=1), help="Only so many prompted slices, those with the largest foreground."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder. Default: autosam2_CASE.")
@click.option("--device", default="cpu", show_default=True)
@click.pass_context
def command(
    context: click.Context,
    case: Path,
    results: Path | None,
    fold: str,
    checkpoint: str,
    dataset: str | None,
    configuration: str,
    plans: str,
    trainer: str,
    prompt_with_truth: bool,
    truth: Path | None,
    slices: int | None,
    output: Path | None,
    device: str,
) -> None:
    """Draw a picture of each prompted slice: its image, its prompts, and the masks of SAM2, UNet, fusion and truth.

    CASE is what the paths of the case's files have in common, as in imagesTs/BraTS2021_00042.

    A trained hybrid (-m) prompts SAM2 by its UNet. An untrained one (-d) does so by the truth, which shows what SAM2
    makes of these images before anything is trained.
    """
    if (results is None) == (dataset is None):
        raise click.UsageError("Give either -m, for a trained hybrid, or -d, for an untrained one.")
    given, other = ("-m", "-d") if results else ("-d", "-m")
    for name in OPTIONS_OF[other]:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} goes with {other}, not with {given}.")
    # These take seconds to import.
    from nnunet_autosam2.show.inside import find_device, look_inside
    from nnunet_autosam2.show.loading import build_untrained, find_shown_case, load_trained, preprocess
    from nnunet_autosam2.show.pictures import require_replaceable, write_pictures
    from nnunet_autosam2.support.plans import find_plans
    from nnunet_autosam2.support.staging import require_writable

    output = output or Path(f"autosam2_{case.name}")
    require_replaceable(output, case.name)
    require_writable(output.absolute().parent)
    torch_device = find_device(device)
    if results is not None:
        model = load_trained(results, fold, checkpoint)
    else:
        assert dataset is not None
        model = build_untrained(find_plans(dataset, plans), configuration, trainer)
        prompt_with_truth = True
    files = find_shown_case(case, truth, model)
    if prompt_with_truth and files.truth is None:
        raise DatasetError(f"There is no truth for {case} to take the prompts from: give it by --truth FILE.")
    volume = preprocess(files, model)
    views = look_inside(model, volume, prompt_with_truth, slices, torch_device)
    description = f"{model.description}; prompts from the {'truth' if prompt_with_truth else 'UNet'}"
    write_pictures(views, case.name, volume.numbering, description, output)
    numbers = ", ".join(str(view.number) for view in views)
    click.echo(f"{output}: slices {numbers} {volume.numbering}")
