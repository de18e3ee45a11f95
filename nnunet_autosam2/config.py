"""Every parameter of AutoSAM2 in one validated, immutable record that travels inside nnU-Net's plans."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.json_files import shown

PLANS_KEY = "autosam2"
SAM2_MODELS = tuple(
    f"{version}-hiera-{size}" for version in ("sam2.1", "sam2") for size in ("tiny", "small", "base-plus", "large")
)
CHOICES: dict[str, tuple[str, ...]] = {
    "fusion": ("fixed", "gated"),
    "backbone": ("autosam2", "plans"),
    "sam2_model": SAM2_MODELS,
    "sam2_tuning": ("frozen", "decoder", "lora", "full"),
    "sam2_precision": ("auto", "float32", "bfloat16"),
    "propagation": ("linear", "memory"),
}
FRACTIONS = ("slice_fraction", "bg_blend", "tumor_blend")
NOT_NEGATIVE = (
    "weight_decay",
    "bce_weight",
    "dice_weight",
    "unet_loss_weight",
    "sam2_loss_weight",
    "num_positive_points",
    "num_negative_points",
)
POSITIVE = (
    "initial_lr",
    "early_stopping_patience",
    "lora_rank",
    "sam2_chunk_size",
    "num_epochs",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
)
MOST = {"num_positive_points": 1000, "num_negative_points": 1000, "lora_rank": 1024, "sam2_image_size": 4096}
"""Beyond these a machine has no memory for the network."""
VALUE_SHOWN = 200
"""Characters of a value in a message"""
PIXELS_AT_ONCE = 16 * 512**2
PIXELS_AT_ONCE_ON_GPU = {"autosam2": 80 * 512**2, "plans": 26 * 512**2}
"""By backbone: every chunk costs the time to launch its kernels, and memory; docs/performance.md has both."""
SAM2_SIZE_STEP = 32  # Hiera's windowed position embedding has to tile the feature map


@dataclass(frozen=True)
class AutoSAM2Config:
    """Parameters of network and training.

    Raises:
        ConfigurationError: for a value that is not possible; the message names key, value and what is allowed.
    """

    # Modes
    slice_fraction: float = 0.3
    """Fraction of the axial slices that pass through SAM2, 0 to 1. 0 is the UNet alone."""
    enable_unet_decoder: bool = True
    """False: SAM2 only. The UNet stops at 1/4 resolution, where its features and coarse logits prompt SAM2."""
    enable_sam2: bool = True
    """False: UNet only."""

    # Prompts, per region and slice
    num_positive_points: int = 10
    num_negative_points: int = 3
    box_prompt: bool = True
    mask_prompt: bool = False
    """The UNet's own probability as SAM2's mask prompt, beside points and box."""

    # Between the slices that SAM2 has seen
    propagation: str = "linear"
    """`linear`: interpolates SAM2's masks. `memory`: a prediction tracks them with SAM2's memory for videos."""

    # Fusion
    fusion: str = "gated"
    """`fixed`: the two blends below. `gated`: starts there and learns where to trust SAM2."""
    bg_blend: float = 0.5
    """Weight of the UNet in the background channel (label-based training has one, region-based has none)."""
    tumor_blend: float = 0.5
    """Weight of the UNet in every foreground channel."""

    # Networks
    backbone: str = "autosam2"
    """`autosam2`: the original's UNet. `plans`: the network that nnU-Net planned."""
    backbone_checkpoint: str | None = None
    """With `backbone=plans`: a checkpoint of nnU-Net to start from, or `auto`, that of nnUNetTrainer for the same data
    set, plans, configuration and fold. SAM2 then starts without a say in a gated fusion."""
    sam2_model: str = "sam2.1-hiera-tiny"
    sam2_checkpoint: str = "auto"
    """A file, `auto` (environment, local cache, model hub) or `random` (explicitly untrained)."""
    sam2_image_size: int = 512
    """Side length in pixels to which a slice is resized for SAM2."""
    sam2_tuning: str = "decoder"
    """What of SAM2 trains: nothing (`frozen`), mask decoder and prompt tokens (`decoder`), these and low-rank adapters
    in the image encoder (`lora`), everything (`full`)."""
    lora_rank: int = 8
    sam2_mirroring: bool = False
    """Of nnU-Net's mirrored passes over a patch, False: SAM2 is asked in the first and all share its masks. True: each
    asks, as always without the UNet's decoder."""
    sam2_precision: str = "auto"
    """Of SAM2. `auto`: bfloat16 where the device has units for it, else float32. In float32 the mask decoder computes
    as nnU-Net does, in float16 on a GPU."""
    sam2_chunk_size: int | None = None
    """Slices that go through SAM2 at once; halved for good when memory runs out. None: as many as have the pixels of 16
    slices of 512 × 512, on a GPU of 80, or of 26 beside nnU-Net's network."""

    # Training
    initial_lr: float = 1e-4
    weight_decay: float = 1e-4
    early_stopping_patience: int = 10
    """Epochs without a better EMA of the pseudo Dice."""
    bce_weight: float = 0.3
    dice_weight: float = 0.7
    class_weights: tuple[float, ...] | None = None
    """One weight a region or a class (background first), None: all equal."""
    unet_loss_weight: float = 1.0
    """Of the loss on the UNet's own outputs (deep supervision), beside the loss on the fused output."""
    sam2_loss_weight: float = 1.0
    """Of the loss on SAM2's own masks, on the slices that it has seen."""

    joint_training: bool = False
    """True: SAM2's masks and the fused output train the UNet too. False: its own outputs alone, so that it becomes what
    it would become without SAM2. Without the UNet's decoder it is always trained by SAM2's masks too."""

    test_run: bool = False
    """True: a handful of cases and two short epochs, to see that everything works."""
    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    """None: nnU-Net's own numbers of epochs and iterations."""

    # Set by the trainer from dataset.json
    region_based: bool = False
    """True: overlapping regions and a sigmoid. False: exclusive labels, background first, and a softmax."""
    rgb_channels: tuple[int, int, int] | None = None
    """Input channels shown to SAM2 as red, green and blue."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _coerce(field.name, str(field.type), getattr(self, field.name)))
        for key, allowed in CHOICES.items():
            self._require(key, getattr(self, key) in allowed, f"one of {', '.join(allowed)}")
        for key in FRACTIONS:
            self._require(key, 0 <= getattr(self, key) <= 1, "a number from 0 to 1")
        for key in NOT_NEGATIVE:
            self._require(key, getattr(self, key) >= 0, "0 or more")
        for key in POSITIVE:
            self._require(key, getattr(self, key) is None or getattr(self, key) > 0, "more than 0")
        for key, most in MOST.items():
            self._require(key, getattr(self, key) <= most, f"{most} or less")
        self._require(
            "sam2_image_size",
            self.sam2_image_size >= 64 and self.sam2_image_size % SAM2_SIZE_STEP == 0,
            f"a multiple of {SAM2_SIZE_STEP}, 64 or more",
        )
        self._require(
            "backbone_checkpoint",
            self.backbone_checkpoint is None or (self.backbone == "plans" and bool(self.backbone_checkpoint)),
            "null, or a file or auto with backbone = plans",
        )
        self._require("sam2_checkpoint", bool(self.sam2_checkpoint), "a file, auto or random")
        self._require(
            "class_weights",
            self.class_weights is None or (min(self.class_weights) >= 0 and sum(self.class_weights) > 0),
            "none, or one number a class, 0 or more and not all 0",
        )
        self._require(
            "rgb_channels",
            self.rgb_channels is None or (len(self.rgb_channels) == 3 and min(self.rgb_channels) >= 0),
            "three channel numbers",
        )
        self._require("bce_weight", self.bce_weight + self.dice_weight > 0, "more than 0 when dice_weight is 0")
        if self.unet_loss_weight == 0 and self.uses_sam2 and self.enable_unet_decoder and not self.joint_training:
            raise ConfigurationError(
                "unet_loss_weight = 0 leaves nothing that trains the UNet. Set joint_training = true or another weight."
            )
        if not self.enable_unet_decoder and not self.uses_sam2:
            raise ConfigurationError(
                "enable_unet_decoder is false and SAM2 is off (enable_sam2 is false or slice_fraction is 0): "
                "nothing is left to predict with. Switch one of the two on."
            )

    @property
    def uses_sam2(self) -> bool:
        """At a slice fraction of 0 the SAM2 branch neither exists nor costs anything."""
        return self.enable_sam2 and self.slice_fraction > 0

    @property
    def slices_at_once(self) -> tuple[int, int]:
        """On a CPU and on a GPU."""
        if self.sam2_chunk_size:
            return self.sam2_chunk_size, self.sam2_chunk_size
        pixels = (PIXELS_AT_ONCE, PIXELS_AT_ONCE_ON_GPU[self.backbone])
        on_cpu, on_gpu = (max(1, each // self.sam2_image_size**2) for each in pixels)
        return on_cpu, on_gpu

    def _require(self, key: str, fulfilled: bool, allowed: str) -> None:
        if not fulfilled:
            raise ConfigurationError(
                f"{key} = {shown(repr(getattr(self, key)), VALUE_SHOWN)} is not possible: it has to be {allowed}."
            )

    def require_fits(self, channels: int, outputs: int) -> None:
        """
        Args:
            channels: of the images.
            outputs: of the network, a region or a class each, with background.

        Raises:
            ConfigurationError: `rgb_channels` or `class_weights` are not for such a data set.
        """
        there = f"channel numbers from 0 to {channels - 1}, which the data set has"
        self._require("rgb_channels", self.rgb_channels is None or max(self.rgb_channels) < channels, there)
        weights = f"null, or {outputs} numbers, one for each region, or for each class with background first"
        self._require("class_weights", self.class_weights is None or len(self.class_weights) == outputs, weights)

    def updated(self, changes: Mapping[str, Any]) -> AutoSAM2Config:
        """A copy with `changes`; unknown keys raise ConfigurationError and name the nearest known one."""
        known = [field.name for field in fields(self)]
        for key in changes:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" Did you mean {near[0]}?" if near else f" Known keys: {', '.join(known)}."
                raise ConfigurationError(f"{shown(key)} is not a parameter of AutoSAM2.{hint}")
        return replace(self, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoSAM2Config:
        """From the `autosam2` block of a plans configuration; missing keys keep their defaults."""
        if not isinstance(values, Mapping):
            raise ConfigurationError(
                f"the {PLANS_KEY} block of the plans has to map keys to values, got {shown(repr(values), VALUE_SHOWN)}."
            )
        return cls().updated(values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the exact inverse of `from_dict`."""
        return json.loads(json.dumps(asdict(self)))

    def differences(self, other: AutoSAM2Config) -> dict[str, tuple[Any, Any]]:
        """Key → (own value, other's value) for every key that differs."""
        mine, theirs = asdict(self), asdict(other)
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}


def parse_assignments(assignments: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """`["slice_fraction=0.6", "fusion=fixed"]` → `{"slice_fraction": 0.6, "fusion": "fixed"}`, values as JSON."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise ConfigurationError(f"{assignment!r} is not of the form key=value.")
        if key in values:
            raise ConfigurationError(f"{key} is given twice.")
        try:
            values[key] = json.loads(text)
        except (ValueError, RecursionError):
            values[key] = {"True": True, "False": False, "None": None}.get(text, text)
    return values


def _coerce(key: str, annotation: str, value: Any) -> Any:
    """JSON's types → the field's; everything that would lose information is refused."""
    if value is None and annotation.endswith("| None"):
        return None
    if annotation.startswith("tuple"):
        number: type = int if "int" in annotation else float
        if not isinstance(value, (list, tuple)) or not value:
            raise ConfigurationError(
                f"{key} = {shown(repr(value), VALUE_SHOWN)} is not possible: it has to be a list of numbers."
            )
        return tuple(_coerce_number(key, number, item) for item in value)
    if annotation == "bool":
        if not isinstance(value, bool):
            raise ConfigurationError(
                f"{key} = {shown(repr(value), VALUE_SHOWN)} is not possible: it has to be true or false."
            )
        return value
    if annotation.split()[0] == "str":
        if not isinstance(value, str):
            raise ConfigurationError(f"{key} = {shown(repr(value), VALUE_SHOWN)} is not possible: it has to be text.")
        return value
    return _coerce_number(key, {"int": int, "float": float}[annotation.split()[0]], value)


def _coerce_number(key: str, number: type, value: Any) -> int | float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not is_number or (number is int and value != int(value)):
        kind = "a whole number" if number is int else "a number"
        raise ConfigurationError(f"{key} = {shown(repr(value), VALUE_SHOWN)} is not possible: it has to be {kind}.")
    return number(value)
