"""`autosam2 merge-adapters`: a trained model with sam2_tuning=lora → the same model without adapters."""

import json
import shutil
from pathlib import Path

import click
from tqdm import tqdm

from nnunet_autosam2.config import PLANS_KEY
from nnunet_autosam2.errors import ConfigurationError, DatasetError, WeightsError
from nnunet_autosam2.support.staging import staged_folder

KEPT = ("trainer_name", "init_args", "inference_allowed_mirroring_axes")
"""Keys that a prediction reads beside the weights. The state of the optimiser fits the adapters alone."""


@click.command(
    short_help="Merge low-rank adapters into SAM2's weights, for prediction.",
    epilog="Example: autosam2 merge-adapters RESULTS_FOLDER merged",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--checkpoint", default="checkpoint_final.pth", show_default=True, help="File name in the folds.")
def command(model: Path, output: Path, checkpoint: str) -> None:
    """Merge the adapters of MODEL, a results folder that was trained with sam2_tuning=lora, into SAM2's weights.

    The new folder OUTPUT has every fold that has the checkpoint. It predicts the same, somewhat faster and without
    the package peft, by nnUNetv2_predict_from_modelfolder -m OUTPUT. It cannot be trained on.
    """
    folds = sorted(path.parent for path in model.glob(f"fold_*/{checkpoint}"))
    if not folds:
        raise DatasetError(f"{model} has no fold with {checkpoint}: give a results folder of nnU-Net, or --checkpoint.")
    if output.exists():
        raise DatasetError(f"{output} exists already: choose another folder.")
    if not output.absolute().parent.is_dir():
        raise DatasetError(f"{output.absolute().parent} is not a folder: make it first.")
    from nnunet_autosam2.support.plans import read_plans  # with torch, which takes seconds

    with staged_folder(output) as unfinished:
        for fold in tqdm(folds, desc="merge", unit="fold", leave=False, disable=None):  # on terminals
            (unfinished / fold.name).mkdir()
            configuration = _merge(model, fold.name, checkpoint, unfinished)
        shutil.copy(model / "dataset.json", unfinished)
        plans = read_plans(model / "plans.json")
        plans["configurations"][configuration][PLANS_KEY]["sam2_tuning"] = "decoder"
        (unfinished / "plans.json").write_text(json.dumps(plans, indent=4))
    click.echo(f"{output}: {len(folds)} fold{'s' if len(folds) > 1 else ''} without adapters")


def _merge(model: Path, fold: str, checkpoint: str, output: Path) -> str:
    """Returns the name of nnU-Net's configuration."""
    import torch

    from nnunet_autosam2.architectures.sam2.tuning import merge_adapters
    from nnunet_autosam2.show.loading import load_trained
    from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint

    network = load_trained(model, fold.removeprefix("fold_"), checkpoint).network
    if network.config.sam2_tuning != "lora":
        raise ConfigurationError(f"{model} was not trained with sam2_tuning=lora: there is nothing to merge.")
    merge_adapters(network)
    trained = read_nnunet_checkpoint(model / fold / checkpoint)
    if missing := [key for key in KEPT if key not in trained]:
        raise WeightsError(f"{model / fold / checkpoint} lacks {', '.join(missing)}, which a prediction needs.")
    kept = {key: trained[key] for key in KEPT}
    path = output / fold / checkpoint
    try:
        torch.save({"network_weights": network.state_dict(), **kept}, path)
    except RuntimeError as error:  # torch's, in the place of the system's
        raise DatasetError(f"{path} cannot be written: {str(error).splitlines()[0]}.") from error
    return trained["init_args"]["configuration"]
