"""Encoders and networks from elsewhere as the start of the backbone: self-supervised ones, or of another data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.run import run_training
from torch import Tensor, nn

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.planned_unet import PlannedUNet
from nnunet_autosam2.errors import WeightsError, exit_on_user_error
from nnunet_autosam2.support.checkpoint import IN_A_LOG, faults_in_words, read_torch_file, unusable
from nnunet_autosam2.trainers.patching import autosam2_of, put_around

EXPECTED = "Expected a checkpoint in nnU-Net's layout, with network_weights."
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of names, by distributed data parallel and by torch.compile"""
STARTS = ("backbone_checkpoint", "encoder_checkpoint")
OWN = "unet."
"""Prefix of the names in a hybrid's UNet"""


def load_pretrained(network: AutoSAM2, path: Path, source: str) -> str:
    """Fills the encoder of the planned network from a checkpoint of such a network, or of such an encoder alone; the
    decoder as well where it is there and fits, but for its segmentation layers. An encoder for one channel gets its
    first weights for each of the channels here, divided by their number.

    Args:
        source: the start of messages.

    Returns:
        A line for the log.

    Raises:
        WeightsError: there is no such file, it holds code, it is of another layout or of another network, or the
            backbone is not one that nnU-Net has planned.
    """
    if not isinstance(network.unet, PlannedUNet):
        raise WeightsError(
            f"{source} is for a network that nnU-Net planned: set backbone = plans, as nnUNetTrainerAutoSAM2_Plans "
            "does."
        )
    planned: nn.Module = network.unet.network
    own, state = planned.state_dict(), _read(path)
    encoder = [name for name in own if name.startswith("encoder.")]
    state |= _for_all_channels(state, {name: own[name] for name in encoder})
    faults = {"missing": [name for name in encoder if name not in state]}
    faults |= unusable(state, {name: own[name] for name in encoder})
    if problems := faults_in_words(faults):
        raise WeightsError(
            f"{source} does not fit the encoder of the plans, {type(planned).__name__}: {problems}. Plan "
            "with the planner that it was made for."
        )
    decoder = [name for name in own if name.startswith("decoder.") and not _is_of_others(name)]
    whole = all(name in state for name in decoder) and not unusable(state, {name: own[name] for name in decoder})
    planned.load_state_dict({name: state[name] for name in (encoder + decoder if whole else encoder)}, strict=False)
    return f"The backbone's {'encoder and decoder start' if whole else 'encoder starts'} from {path}."


def _read(path: Path) -> dict[str, Tensor]:
    content = read_torch_file(path, EXPECTED, safe_globals=IN_A_LOG, mmap=True)
    weights = content.get("network_weights") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise WeightsError(f"{path} is refused: it has no network_weights that map names to tensors. {EXPECTED}")
    for wrapper in WRAPPERS:
        weights = {name.removeprefix(wrapper): tensor for name, tensor in weights.items()}
    return weights


def _for_all_channels(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """First layers of one channel, as those of `own` with more."""
    there = {name: (state[name], own[name]) for name in own if name in state and isinstance(state[name], Tensor)}
    return {
        name: one.expand_as(mine) / mine.shape[1]
        for name, (one, mine) in there.items()
        if one.ndim == mine.ndim > 2 and one.shape[1] == 1 and one.shape == (len(mine), 1, *mine.shape[2:])
    }


def _is_of_others(name: str) -> bool:
    """The decoder of nnU-Net holds the encoder, too, and its segmentation layers are of other labels."""
    return name.startswith("decoder.encoder.") or ".seg_layers." in name


def take_pretrained_weights() -> None:
    """Makes nnU-Net's `-pretrained_weights` take networks and encoders without SAM2 for the backbone of a hybrid.

    Checkpoints of hybrids are read as ever, and so is everything for other networks.
    """
    hybrids_alone = "-pretrained_weights takes checkpoints of hybrids alone, none of the networks in them"
    put_around(run_training, "load_pretrained_weights", _with_backbones, hybrids_alone)


def _with_backbones(load: Callable[..., None]) -> Callable[..., None]:
    def load_pretrained_weights(network: Any, fname: str, verbose: bool = False) -> None:
        autosam2 = autosam2_of(network)
        if autosam2 is None:
            load(network, fname, verbose)
            return
        source = f"-pretrained_weights {fname}"
        with exit_on_user_error():
            if any(name.startswith(OWN) for name in _read(Path(fname))):
                try:
                    load(network, fname, verbose)
                except AssertionError as error:
                    raise WeightsError(f"{source} does not fit: {error}") from error
            elif starts := [key for key in STARTS if getattr(autosam2.config, key) is not None]:
                raise WeightsError(f"{source} and {starts[0]} are two starts for one backbone: leave one out.")
            else:
                print(load_pretrained(autosam2, Path(fname), source))

    return load_pretrained_weights
