"""`autosam2 configure`: adds a configuration to nnU-Net's plans, so that nobody edits JSON by hand."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

from nnunet_autosam2.architectures.sam2.weights import expanded
from nnunet_autosam2.config import PLANS_KEY, parse_assignments
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.parameter_table import parameters
from nnunet_autosam2.support.configurations import changed_block
from nnunet_autosam2.support.plans import find_plans, read_plans, require_configuration
from nnunet_autosam2.support.staging import replace_file

FILES = ("sam2_checkpoint", "backbone_checkpoint", "encoder_checkpoint")
MIN_FEATURE_MAP_SIZE = 4  # as nnU-Net's planner
MIN_STAGES = 3  # nnU-Net's deep supervision gives the coarsest output no weight, so there have to be two


class ListsParameters(click.Command):
    """A command whose help ends with all parameters of AutoSAM2."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        rows = [
            (each.key, f"{each.meaning} [{each.values}; default: {each.default}]".replace("`", ""))
            for each in parameters()
        ]
        with formatter.section("Parameters of AutoSAM2"):
            formatter.write_dl(rows)


@click.command(
    cls=ListsParameters,
    short_help="Add a configuration to the plans of a dataset.",
    epilog="Example: autosam2 configure 21 --name 3d_fullres_60 slice_fraction=0.6 fusion=fixed",
)
@click.argument("dataset")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--base", default="3d_fullres", show_default=True, help="Configuration to inherit from.")
@click.option("--name", required=True, help="Name of the new configuration.")
@click.option("-p", "--plans", default="nnUNetPlans", show_default=True, help="Plans identifier of nnU-Net.")
@click.option("--patch-size", nargs=3, type=int, metavar="Z Y X", help="Patch in voxels; refits the network.")
@click.option("--batch-size", type=int, help="Patches in a batch.")
@click.option("--base-features", type=int, help="Features of the planned U-Net at full resolution.")
@click.option("--max-features", type=int, help="Most features that the planned U-Net may have at any stage.")
def command(
    dataset: str,
    assignments: tuple[str, ...],
    base: str,
    name: str,
    plans: str,
    patch_size: tuple[int, int, int] | None,
    batch_size: int | None,
    base_features: int | None,
    max_features: int | None,
) -> None:
    """Add a configuration to the plans of DATASET (ID or name) that inherits from another one.

    Parameters of AutoSAM2, listed below, are given as KEY=VALUE. The options change what nnU-Net planned: a smaller
    patch and fewer features for a smaller machine.
    """
    for option, value in (
        ("--batch-size", batch_size),
        ("--base-features", base_features),
        ("--max-features", max_features),
    ):
        if value is not None and value < 1:
            raise ConfigurationError(f"{option} = {value} is not possible: it has to be 1 or more.")
    changes = {key: _whole_path(key, value) for key, value in parse_assignments(assignments).items()}
    path = find_plans(dataset, plans)
    content = read_plans(path)
    inherited = _base_configuration(content, base, path)
    if patch_size and len(inherited["patch_size"]) != len(patch_size):
        raise ConfigurationError(f"--patch-size is of volumes, and --base {base} is 2D: its patch stays as planned.")
    _require_new_name(name, content, path)
    block = changed_block(inherited, changes, content, path)

    added: dict[str, Any] = {"inherits_from": base}
    if batch_size is not None:
        added["batch_size"] = batch_size
    if patch_size:
        added["patch_size"] = list(patch_size)
    if patch_size or base_features or max_features:
        added["architecture"] = refit_architecture(inherited, patch_size, base_features, max_features)
    if changes:
        added[PLANS_KEY] = block

    content["configurations"][name] = added
    replace_file(path, json.dumps(content, indent=4))
    _report(path, name, base, added, inherited["data_identifier"])


def refit_architecture(
    configuration: dict[str, Any],
    patch_size: Sequence[int] | None,
    base_features: int | None = None,
    max_features: int | None = None,
) -> dict[str, Any]:
    """The architecture block of a resolved configuration, refitted by the rules of nnU-Net's planner.

    Stages, strides and kernels follow from patch and spacing; there are never more stages than were planned.

    Args:
        patch_size: [D, H, W] in voxels. None: as planned.
        base_features: at full resolution, doubled from stage to stage. None: as planned.
        max_features: upper limit at any stage. None: as planned.

    Raises:
        ConfigurationError: the patch is too small or not divisible by the strides.
    """
    architecture = configuration["architecture"]
    planned = architecture["arch_kwargs"]
    strides, kernel_sizes = planned["strides"], planned["kernel_sizes"]
    if patch_size:
        strides, kernel_sizes = _topology(configuration["spacing"], patch_size, planned["n_stages"])
    stages = len(strides)
    features = planned["features_per_stage"][:stages]
    if base_features or max_features:
        limit = max_features or max(planned["features_per_stage"])
        features = [min((base_features or features[0]) * 2**stage, limit) for stage in range(stages)]
    refitted = {
        **planned,
        "n_stages": stages,
        "features_per_stage": features,
        "strides": strides,
        "kernel_sizes": kernel_sizes,
        "n_conv_per_stage_decoder": planned["n_conv_per_stage_decoder"][: stages - 1],
    }
    for key in ("n_conv_per_stage", "n_blocks_per_stage"):  # PlainConvUNet, ResidualEncoderUNet
        if key in planned:
            refitted[key] = planned[key][:stages]
    return {**architecture, "arch_kwargs": refitted}


def _topology(
    spacing: Sequence[float], patch_size: Sequence[int], max_stages: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernel sizes per stage, by nnU-Net's own rule."""
    shown = " ".join(map(str, patch_size))
    if min(patch_size) < MIN_FEATURE_MAP_SIZE:
        raise ConfigurationError(
            f"--patch-size {shown} is too small: every axis needs {MIN_FEATURE_MAP_SIZE} or more voxels."
        )
    _, strides, kernel_sizes, _, _ = get_pool_and_conv_props(spacing, patch_size, MIN_FEATURE_MAP_SIZE, 999)
    strides = [list(stride) for stride in strides[:max_stages]]
    if len(strides) < MIN_STAGES:
        raise ConfigurationError(
            f"--patch-size {shown} is too small: the network needs {MIN_STAGES} stages, this leaves {len(strides)}."
        )
    fitting = []
    for axis, size in enumerate(patch_size):
        divisor = 1
        for stride in strides:
            divisor *= stride[axis]
        fitting.append(-(-size // divisor) * divisor)
    if fitting != list(patch_size):
        raise ConfigurationError(
            f"--patch-size {shown} cannot be halved as often as the network does: "
            f"{' '.join(map(str, fitting))} is the next size up that can."
        )
    kernels = [list(kernel) for kernel in kernel_sizes[: len(strides) - 1]]
    return strides, [*kernels, [3] * len(patch_size)]


def _whole_path(key: str, value: Any) -> Any:
    """Absolute path of a file, which a training may look for from another folder; other values as they are."""
    if key not in FILES or not isinstance(value, str) or value in ("", "auto", "random"):
        return value
    path = os.path.abspath(expanded(value, f"{key} = "))
    if not os.path.isfile(path):
        raise ConfigurationError(f"{key} = {value} is not possible: {path} is not a file.")
    return path


def _base_configuration(content: dict[str, Any], base: str, path: Path) -> dict[str, Any]:
    """With everything that it inherits itself."""
    known = content["configurations"]
    if base not in known:
        raise ConfigurationError(f"--base {base} is not in {path}. It has: {', '.join(known)}.")
    return require_configuration(base, content, path)


def _require_new_name(name: str, content: dict[str, Any], path: Path) -> None:
    if name in content["configurations"]:
        raise ConfigurationError(f"--name {name} exists already in {path}: choose another name.")
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) or "__" in name:
        raise ConfigurationError(
            f"--name {name!r} is not possible: nnU-Net makes a folder of it, from letters, digits, - + . and single _."
        )


def _report(path: Path, name: str, base: str, added: dict[str, Any], data_identifier: str) -> None:
    dataset = convert_dataset_name_to_id(path.parent.name)
    changes = {key: value for key, value in added.items() if key in ("patch_size", "batch_size")}
    if "architecture" in added:
        changes["features_per_stage"] = added["architecture"]["arch_kwargs"]["features_per_stage"]
    changes |= added.get(PLANS_KEY, {})
    click.echo(f"Added {name} to {path}, inheriting from {base}:")
    for key, value in changes.items():
        click.echo(f"  {key} = {json.dumps(value)}")
    if (path.parent / data_identifier).is_dir():
        click.echo(f"It uses the preprocessed data of {base}; nothing has to be preprocessed again. Train it with")
    else:
        click.echo("Preprocess, then train it with")
        click.echo(f"  nnUNetv2_preprocess -d {dataset} -c {name} -plans_name {path.stem}")
    click.echo(f"  nnUNetv2_train {dataset} {name} 0 -p {path.stem} -tr nnUNetTrainerAutoSAM2")
