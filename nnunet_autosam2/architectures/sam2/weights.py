"""Where the weights of SAM2 come from, and how a checkpoint is read and checked before it is used."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import huggingface_hub

from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import WeightsError
from nnunet_autosam2.support.checkpoint import read_torch_file, unusable

if TYPE_CHECKING:
    from torch import Tensor, nn

ENVIRONMENT_VARIABLE = "AUTOSAM2_SAM2_WEIGHTS"
HUB_TIMEOUT = 5  # seconds
HUB_TRIES = 3
"""Each goes on where the one before has ended, for clients of the hub before 1.20 that give up at the first break"""
LICENCE = "SAM 2's weights are Meta's, under the Apache License 2.0 (https://github.com/facebookresearch/sam2)."
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
"""Parts of SAM2 that track objects through a video; single slices do without them."""
ONLY_IN_2_1 = frozenset({"no_obj_embed_spatial", "obj_ptr_tpos_proj"})
"""Those of them that SAM 2 lacks and SAM 2.1 has."""
WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes that distributed data parallel, torch.compile and Lightning put before every name"""
ARCHITECTURES = {(96, 12): "tiny", (96, 16): "small", (112, 24): "base-plus", (144, 48): "large"}
"""(Width of the patch embedding, number of blocks) of Hiera → size in the model's name."""
MILLION_PARAMETERS = {"tiny": 39, "small": 46, "base-plus": 81, "large": 224}
"""Size of the whole model, in float32 in the official files"""
ORIGINS = {
    "config": "sam2_checkpoint",
    "environment": f"environment variable {ENVIRONMENT_VARIABLE}",
    "cache": "local cache of the model hub",
    "hub": "to be downloaded from the model hub",
    "random": "random, untrained (sam2_checkpoint=random)",
}


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights are. `path` is None for those that are still on the hub and for random ones."""

    kind: str
    """A key of ORIGINS"""
    path: Path | None = None

    @property
    def description(self) -> str:
        return f"{self.path} ({ORIGINS[self.kind]})" if self.path else ORIGINS[self.kind]


def find(config: AutoSAM2Config) -> WeightsSource:
    """The first place that has weights for `config`, without downloading anything.

    Raises:
        WeightsError: the file or folder that the configuration or the environment names does not serve.
    """
    if config.sam2_checkpoint == "random":
        return WeightsSource("random")
    if config.sam2_checkpoint != "auto":
        path = expanded(config.sam2_checkpoint, "sam2_checkpoint = ")
        if not os.path.isfile(path):
            raise WeightsError(f"sam2_checkpoint = {path} is not a file. {_remedies(config)}")
        return WeightsSource("config", path)
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        path = expanded(named, f"{ENVIRONMENT_VARIABLE}=")
        path = path / hub_file(config.sam2_model)[1] if os.path.isdir(path) else path
        if not os.path.isfile(path):
            raise WeightsError(f"{ENVIRONMENT_VARIABLE}={named}: {path} is not a file. {_remedies(config)}")
        return WeightsSource("environment", path)
    in_cache = cached(config.sam2_model)
    return WeightsSource("cache", in_cache) if in_cache else WeightsSource("hub")


def expanded(named: str, key: str) -> Path:
    """`named` with the user's home in the place of `~`.

    Raises:
        WeightsError: there is no such user; `key` and `named` start the message.
    """
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise WeightsError(f"{key}{named}: there is no home of {named.split('/')[0]}. Give the whole path.") from error


def find_file(config: AutoSAM2Config) -> tuple[Path, str]:
    """The file on this machine that a training would use, and how it was found.

    Raises:
        WeightsError: there is none; the message names every way to provide it.
    """
    source = find(config)
    if source.path is None:
        raise WeightsError(f"No file on this machine: the weights are {source.description}. {_remedies(config)}")
    return source.path, ORIGINS[source.kind]


def cached(model: str) -> Path | None:
    """The official file in the model hub's local cache, whatever configuration and environment say."""
    path = huggingface_hub.try_to_load_from_cache(*hub_file(model))
    return Path(path) if isinstance(path, str) else None


def require_reachable(config: AutoSAM2Config) -> None:
    """Asks the model hub for the file's header only.

    Raises:
        WeightsError: no answer within seconds. (`hf_hub_download` alone would try again for half a minute.)
    """
    try:
        url = huggingface_hub.hf_hub_url(*hub_file(config.sam2_model))
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub's HTTP client, and with it the exceptions, differ between versions
        raise _cannot_download(config, error) from error


def obtain(config: AutoSAM2Config) -> Path | None:
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
    return download(config) if source.kind == "hub" else source.path


def download(config: AutoSAM2Config) -> Path:
    """Fetches the official file into the model hub's local cache, with its licence and a progress bar on stderr.

    A connection that breaks is taken up where it broke.

    Raises:
        WeightsError: the hub cannot be reached or does not answer with the file.
    """
    require_reachable(config)
    print(LICENCE, file=sys.stderr)
    for _ in range(HUB_TRIES):
        try:
            return Path(huggingface_hub.hf_hub_download(*hub_file(config.sam2_model), etag_timeout=HUB_TIMEOUT))
        except Exception as error:
            failure = error
    raise _cannot_download(config, failure) from failure


class Checkpoint(NamedTuple):
    state: dict[str, Tensor]
    """Parameter name → tensor on the CPU, under SAM2's own names"""
    remark: str
    """Changes of names to get there; empty for the official layout"""


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of `read_layout`, with a warning where it has left something out."""
    checkpoint = read_layout(path)
    if checkpoint.remark:
        warnings.warn(f"{path}: {checkpoint.remark}.", stacklevel=2)
    return checkpoint.state


def read_layout(path: str | Path) -> Checkpoint:
    """Reads a file in SAM2's layout `{"model": {name: tensor}}`, or one with the names and tensors alone. A prefix that
    all names share, because the model was wrapped when it was saved, is left out.

    Raises:
        WeightsError: the file is missing, damaged, of another layout, or holds objects other than tensors,
            which could run code and are never loaded.
    """
    expected = 'Expected a SAM2 checkpoint: {"model": {name: tensor}}, written by torch.save.'
    content = read_torch_file(path, expected)
    if not isinstance(content, dict) or ("model" not in content and not _maps_names_to_tensors(content)):
        found = f"the keys {_first(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise WeightsError(f"{path} is refused: found {found}. {expected}")
    state = content.get("model", content)
    if not _maps_names_to_tensors(state):
        raise WeightsError(f'{path} is refused: "model" does not map names to tensors. {expected}')
    prefix = _shared_prefix(state)
    remarks = ["names and tensors without model around them"] * (state is content)
    remarks += [f"the prefix {prefix} of all names is left out"] * bool(prefix)
    return Checkpoint({name.removeprefix(prefix): tensor for name, tensor in state.items()}, ", ".join(remarks))


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The official model that has this architecture, None if there is none.

    SAM 2 and SAM 2.1 differ in their parts for video only; without these, 2.1 is named.
    """
    size = _size(state)
    if size is None:
        return None
    parts = _parts(state)
    is_2_0 = bool(parts & VIDEO_MEMORY) and not parts & ONLY_IN_2_1
    return f"{'sam2' if is_2_0 else 'sam2.1'}-hiera-{size}"


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Fills `module`, which holds the parts of SAM2 that AutoSAM2 uses under SAM2's own names.

    The parts for video are left out of `state` if the module has none of them; everything else has to fit, or nothing
    is loaded. Low-rank adapters in the module are not SAM2's and stay as they are. Zeros alone are taken where the
    module has them as well, and for a bias.

    Raises:
        WeightsError: entries are missing, unknown, of another shape or kind, not finite or all zeros; `path` is named
            in the message.
    """
    state_of_module = module.state_dict()
    names = {_official_name(name): name for name in state_of_module if not _is_adapter(name)}
    own = {official: state_of_module[name] for official, name in names.items()}
    dropped = VIDEO_MEMORY if VIDEO_MEMORY.isdisjoint(_parts(own)) else frozenset()
    offered = {name: tensor for name, tensor in state.items() if name.split(".")[0] not in dropped}
    faults = {
        "missing": [name for name in own if name not in offered],
        "unknown": [name for name in offered if name not in own],
        **unusable(offered, own),
    }
    problems = [f"{len(names)} {kind}: {_first(names)}" for kind, names in faults.items() if names]
    if not problems and (zeros := [name for name in own if _is_untrained(name, offered[name], own[name])]):
        problems = [f"{len(zeros)} all zeros: {_first(zeros)}"]
    if problems:
        raise WeightsError(
            f"{path} does not fit the SAM2 model: expected {len(own)} entries, found {len(offered)}; "
            f"{'; '.join(problems)}.{_hint(own, offered, state)}"
        )
    module.load_state_dict({names[official]: tensor for official, tensor in offered.items()}, strict=False)


def hub_file(model: str) -> tuple[str, str]:
    """Repository and file name on the model hub."""
    return f"facebook/{model}", f"{model.replace('-', '_')}.pt"


def _cannot_download(config: AutoSAM2Config, error: Exception) -> WeightsError:
    url = huggingface_hub.hf_hub_url(*hub_file(config.sam2_model))
    reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]]).rstrip(".")
    return WeightsError(f"{url} cannot be downloaded ({reason}). {_remedies(config)}")


def _remedies(config: AutoSAM2Config) -> str:
    model = config.sam2_model
    return (
        f"Weights of {model} come from the configuration (sam2_checkpoint=FILE), from the "
        f"environment variable {ENVIRONMENT_VARIABLE} (a file, or a folder that holds {hub_file(model)[1]}), or from "
        f"the model hub (sam2_checkpoint=auto; `autosam2 weights get {model}` needs a network once). "
        "sam2_checkpoint=random trains without them."
    )


def _maps_names_to_tensors(content: Any) -> bool:
    import torch

    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def _shared_prefix(names: Iterable[str]) -> str:
    """Prefix of all names, made of WRAPPERS in any order."""
    prefix = ""
    while more := next((each for each in WRAPPERS if all(name.startswith(prefix + each) for name in names)), None):
        prefix += more
    return prefix


def _parts(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _is_untrained(name: str, tensor: Tensor, initial: Tensor) -> bool:
    return not name.endswith("bias") and bool(initial.any()) and not bool(tensor.any())


def _is_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def _official_name(name: str) -> str:
    """`peft` moves a layer that it adapts to `base_layer`."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _first(names: Any) -> str:
    shown = [str(name) for name in list(names)[:3]]
    return ", ".join([*shown, "…"] if len(names) > len(shown) else shown)


def _hint(own: Mapping[str, Tensor], offered: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    if recognise(offered) in (None, recognise(own)):
        return ""
    model = recognise(state)
    return f" It looks like {model}: set sam2_model to {model}."


def _size(state: Mapping[str, Tensor]) -> str | None:
    patch_embedding = state.get("image_encoder.trunk.patch_embed.proj.weight")
    if patch_embedding is None:
        return None
    blocks = {name.split(".")[3] for name in state if name.startswith("image_encoder.trunk.blocks.")}
    return ARCHITECTURES.get((patch_embedding.shape[0], len(blocks)))
