"""Where the weights of SAM2 come from, and how a checkpoint is read and checked before it is used."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
from torch import Tensor, nn

from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import WeightsError

ENVIRONMENT_VARIABLE = "AUTOSAM2_SAM2_WEIGHTS"
HUB_TIMEOUT = 5  # seconds
VIDEO_MEMORY = frozenset(
    {
        "memory_attention",
        "memory_encoder",
        "maskmem_tpos_enc",
        "mask_downsample",
        "no_mem_pos_enc",
        "no_obj_embed_spatial",
        "no_obj_ptr",
        "obj_ptr_proj",
        "obj_ptr_tpos_proj",
    }
)
"""Parts of SAM2 that track objects through a video; AutoSAM2 looks at single slices without them."""
ARCHITECTURES = {(96, 12): "tiny", (96, 16): "small", (112, 24): "base-plus", (144, 48): "large"}
"""(Width of the patch embedding, number of blocks) of Hiera → size in the model's name."""


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights are. `path` is None for those that are still on the hub and for random ones."""

    kind: str
    """`config`, `environment`, `cache`, `hub` or `random`"""
    path: Path | None
    description: str


def find(config: AutoSAM2Config) -> WeightsSource:
    """The first place that has weights for `config`, without downloading anything.

    Raises:
        WeightsError: the file or folder that the configuration or the environment names does not serve.
    """
    repository, filename = _hub_file(config)
    if config.sam2_checkpoint == "random":
        return WeightsSource("random", None, "random, untrained (sam2_checkpoint=random)")
    if config.sam2_checkpoint != "auto":
        path = Path(config.sam2_checkpoint).expanduser()
        if not path.is_file():
            raise WeightsError(f"sam2_checkpoint = {path} is not a file. {_remedies(config)}")
        return WeightsSource("config", path, f"{path} (sam2_checkpoint)")
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        path = Path(named).expanduser()
        path = path / filename if path.is_dir() else path
        if not path.is_file():
            raise WeightsError(f"{ENVIRONMENT_VARIABLE}={named}: {path} is not a file. {_remedies(config)}")
        return WeightsSource("environment", path, f"{path} (environment variable {ENVIRONMENT_VARIABLE})")
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return WeightsSource("cache", Path(cached), f"{cached} (local cache of the model hub)")
    return WeightsSource("hub", None, f"{hf_hub_url(repository, filename)} (to be downloaded)")


def require_reachable(config: AutoSAM2Config) -> None:
    """Asks the model hub for the file's header only.

    Raises:
        WeightsError: no answer within seconds. (`hf_hub_download` alone would try again for half a minute.)
    """
    try:
        get_hf_file_metadata(hf_hub_url(*_hub_file(config)), timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub's HTTP client, and with it the exceptions, differ between versions
        raise _cannot_download(config, error) from error


def locate(config: AutoSAM2Config) -> Path | None:
    """The checkpoint file, downloaded if that is the only way; None for weights that are random on purpose.

    Raises:
        WeightsError: there are none; the message names every way to provide them.
    """
    source = find(config)
    if source.kind == "random":
        warnings.warn(
            "sam2_checkpoint is random: SAM2 starts untrained, which is of use for trying out only.",
            stacklevel=2,
        )
    if source.kind != "hub":
        return source.path
    require_reachable(config)
    try:
        return Path(hf_hub_download(*_hub_file(config), etag_timeout=HUB_TIMEOUT))
    except Exception as error:
        raise _cannot_download(config, error) from error


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Parameter name → tensor on the CPU, from a file in SAM2's layout `{"model": {name: tensor}}`.

    Raises:
        WeightsError: the file is missing, damaged, of another layout, or holds objects other than tensors,
            which could run code and are never loaded.
    """
    expected = 'Expected a SAM2 checkpoint: {"model": {name: tensor}}, written by torch.save.'
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist. {expected}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}. {expected}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} is refused: found objects that could run code. {expected}") from error
    except Exception as error:  # whatever damaged bytes lead to in torch's unpickler
        raise WeightsError(f"{path} is truncated or damaged. {expected}") from error
    if not isinstance(content, dict) or "model" not in content:
        found = f"the keys {_first(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise WeightsError(f"{path} is refused: found {found}. {expected}")
    state = content["model"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f'{path} is refused: "model" does not map names to tensors. {expected}')
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Fills `module`, which holds the parts of SAM2 that AutoSAM2 uses under SAM2's own names.

    The parts for video are left out of `state`; everything else has to fit, or nothing is loaded.

    Raises:
        WeightsError: entries are missing, unknown or of another shape; `path` is named in the message.
    """
    own = module.state_dict()
    offered = {name: tensor for name, tensor in state.items() if name.split(".")[0] not in VIDEO_MEMORY}
    missing = [name for name in own if name not in offered]
    unknown = [name for name in offered if name not in own]
    reshaped = [
        f"{name} (expected {list(own[name].shape)}, found {list(offered[name].shape)})"
        for name in own
        if name in offered and own[name].shape != offered[name].shape
    ]
    problems = [
        f"{len(names)} {kind}: {_first(names)}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise WeightsError(f"{path} does not fit the SAM2 model. {'; '.join(problems)}.{_hint(own, offered)}")
    module.load_state_dict(offered)


def _hub_file(config: AutoSAM2Config) -> tuple[str, str]:
    """Repository and file name on the model hub, as the sam2 package knows them."""
    repository = f"facebook/{config.sam2_model}"
    return repository, HF_MODEL_ID_TO_FILENAMES[repository][1]


def _cannot_download(config: AutoSAM2Config, error: Exception) -> WeightsError:
    url = hf_hub_url(*_hub_file(config))
    return WeightsError(f"{url} cannot be reached ({type(error).__name__}). {_remedies(config)}")


def _remedies(config: AutoSAM2Config) -> str:
    filename = _hub_file(config)[1]
    return (
        f"Weights of {config.sam2_model} come from the configuration (sam2_checkpoint=FILE), from the "
        f"environment variable {ENVIRONMENT_VARIABLE} (a file, or a folder that holds {filename}), or from the "
        "model hub (sam2_checkpoint=auto, needs a network). sam2_checkpoint=random trains without them."
    )


def _first(names: Any) -> str:
    shown = [str(name) for name in list(names)[:3]]
    return ", ".join([*shown, "…"] if len(names) > len(shown) else shown)


def _hint(own: Mapping[str, Tensor], offered: Mapping[str, Tensor]) -> str:
    size = _size(offered)
    if size is None or size == _size(own):
        return ""
    return f" It looks like a {size} model: set sam2_model to sam2.1-hiera-{size} or sam2-hiera-{size}."


def _size(state: Mapping[str, Tensor]) -> str | None:
    patch_embedding = state.get("image_encoder.trunk.patch_embed.proj.weight")
    if patch_embedding is None:
        return None
    blocks = {name.split(".")[3] for name in state if name.startswith("image_encoder.trunk.blocks.")}
    return ARCHITECTURES.get((patch_embedding.shape[0], len(blocks)))
