"""Every parameter of AutoSAM2 in one validated, immutable record that travels inside nnU-Net's plans."""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.json_files import shown
from nnunet_autosam2.support.schema_words import in_words

PLANS_KEY = "autosam2"
VALUE_SHOWN = 200
"""Characters of a value in a message"""
PIXELS_AT_ONCE = 4 * 512**2
PIXELS_AT_ONCE_ON_GPU = {"autosam2": 80 * 512**2, "plans": 26 * 512**2}
"""Pixels by backbone: every chunk costs the time to launch its kernels, and memory; docs/performance.md has both."""
SAM2_SIZE_STEP = 32  # Hiera's windowed position embedding has to tile the feature map

Propagation = Literal["linear", "memory"]
Fusion = Literal["fixed", "gated", "convolutional", "off"]
Backbone = Literal["autosam2", "plans"]
SAM2Model = Literal[
    "sam2.1-hiera-tiny",
    "sam2.1-hiera-small",
    "sam2.1-hiera-base-plus",
    "sam2.1-hiera-large",
    "sam2-hiera-tiny",
    "sam2-hiera-small",
    "sam2-hiera-base-plus",
    "sam2-hiera-large",
]
SAM2_MODELS: tuple[SAM2Model, ...] = get_args(SAM2Model)
Tuning = Literal["frozen", "decoder", "lora", "full"]
Precision = Literal["auto", "float32", "bfloat16"]

Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Points = Annotated[int, Field(ge=0, le=1000)]
Channel = Annotated[int, Field(ge=0)]
File = Annotated[str, Field(min_length=1, json_schema_extra={"format": "file-path"})]


def _not_all_zero(weights: tuple[float, ...]) -> tuple[float, ...]:
    if not any(weights):
        raise ValueError("all are 0")
    return weights


Weights = Annotated[
    tuple[NotNegative, ...],
    Field(min_length=1, json_schema_extra={"contains": {"exclusiveMinimum": 0}}),
    AfterValidator(_not_all_zero),
]


class AutoSAM2Config(BaseModel, frozen=True):
    """Parameters of network and training. The docstring of each is its text in documentation and help.

    Raises:
        ConfigurationError: an unknown key, an impossible value or combination; the message names key, value and what
            is allowed.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    # Modes
    slice_fraction: Fraction = 0.3
    """Fraction of the axial slices that pass through SAM2, or of all axes, which share it (`slice_axes`); 0 is the UNet
    alone (`percentage` in the original)."""
    enable_unet_decoder: bool = True
    """False: SAM2 only. The UNet stops at 1/4 resolution, where its features and coarse logits prompt SAM2."""
    enable_sam2: bool = True
    """False: UNet only."""

    # Prompts
    num_positive_points: Points = 10
    """Positive points per region and slice, at most."""
    num_negative_points: Points = 3
    """Negative points per region and slice, at most."""
    box_prompt: bool = True
    """A box around each region, with a margin of 10 %."""
    boxes_per_region: Annotated[int, Field(ge=1, le=16)] = 1
    """Parts of a region on a slice, more than 10 pixels apart, for which SAM2 is prompted one by one, as for
    metastases; the last of them is all that remains. Their masks are united. 1: all parts in one prompt."""
    prompt_threshold: Annotated[float, Field(ge=0.01, le=0.5)] = 0.5
    """Probability of the UNet from which a region is prompted on a slice where none of it is above 0.5. 0.5: it is not
    prompted there."""
    regions_per_slice: Count | None = 4
    """Where there are more regions (or foreground classes): so many of those that the UNet sees on a slice, drawn anew,
    are prompted for in a training step. Predictions prompt for all that it sees. Null: for all, seen or not."""
    mask_prompt: bool = False
    """The UNet's probability as SAM2's mask prompt, beside points and box."""

    # Reconstruction
    propagation: Propagation = "linear"
    """Between the slices that SAM2 has seen. `linear`: interpolates SAM2's masks. `memory`: predictions track them with
    SAM2's memory for videos."""

    # Fusion
    fusion: Fusion = "gated"
    """How the UNet and SAM2's masks become one. `fixed`: the two blends below. `gated`: starts there and learns where
    to trust SAM2. `convolutional`: the same with a gate that sees the neighbourhood and the UNet's features. `off`:
    SAM2 makes no masks, only features (`feature_fusion`)."""
    bg_blend: Fraction = 0.5
    """The UNet's weight in the background channel, which label-based training has and region-based does not."""
    tumor_blend: Fraction = 0.5
    """The UNet's weight in every region or foreground class."""
    gate_veto: bool = True
    """True: at the end of a training, the gate closes in each region (or class) in which the hybrid has been below its
    UNet alone, by their EMA of the pseudo Dice. Without effect on `fusion=fixed`."""

    feature_fusion: bool = False
    """True: SAM2's image embeddings of the selected slices go into the UNet's decoder, by residuals that start at
    zero."""

    # Networks
    backbone: Backbone = "autosam2"
    """`autosam2`: the original's UNet. `plans`: the network that nnU-Net planned (PlainConvUNet, ResEnc)."""
    backbone_checkpoint: File | Literal["auto"] | None = None
    """With `backbone=plans`: a checkpoint of nnU-Net to start from, or `auto`, that of nnUNetTrainer for the same data
    set, plans, configuration and fold. The gate of a gated fusion then starts closed."""
    encoder_checkpoint: File | None = None
    """With `backbone=plans`: a checkpoint in nnU-Net's layout whose encoder the network starts from, as of
    self-supervised training."""
    sam2_model: SAM2Model = "sam2.1-hiera-tiny"
    """Version and size of SAM2."""
    sam2_checkpoint: File | Literal["auto", "random"] = "auto"
    """SAM2's weights. `auto`: environment variable, local cache or model hub. `random`: explicitly untrained."""
    sam2_image_size: Annotated[int, Field(ge=64, le=4096, multiple_of=SAM2_SIZE_STEP)] = 512
    """Side length in pixels to which a slice is resized for SAM2. Cost grows with its square, masks come at a quarter
    of it."""
    sam2_tuning: Tuning = "decoder"
    """Parts of SAM2 that train: none (`frozen`), mask decoder and prompt tokens (`decoder`), these and low-rank
    adapters in the image encoder (`lora`), everything (`full`)."""
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the adapters of `sam2_tuning=lora`."""
    sam2_mirroring: bool = False
    """Test-time augmentation by mirroring. False: SAM2 is run in the first pass over a tile and all share its masks.
    True: it is run in each, which gains a little and costs a lot."""
    slice_axes: Annotated[int, Field(ge=1, le=3)] = 1
    """Axes along which SAM2's slices are cut, where voxels and patch are isotropic: 1, the first; 2 or 3, another one
    in each training step, and in test-time augmentation each of them for a part of the mirrored passes, which share
    its masks. Along each of them `slice_fraction` is so much the smaller: several cost as much as one."""
    sam2_precision: Precision = "auto"
    """Precision of SAM2. `auto`: bfloat16 where the device is faster in it, else float32. In float32 the mask decoder
    computes as nnU-Net does, in float16 on a GPU."""
    sam2_chunk_size: Count | None = None
    """Slices that go through SAM2 at once, halved for good when memory runs out. Null: as many as have the pixels of 4
    slices of 512 × 512; on a GPU of 80, or of 26 beside nnU-Net's network."""

    # Training
    training_slices: Count | None = 4
    """Slices of a sample that pass through SAM2 in a training step: a window of consecutive selected ones, drawn anew
    in each step. Outside of it the UNet stands alone. Predictions use all. Null: all, in training as well."""
    freeze_backbone: bool = False
    """With a `backbone_checkpoint`: the trained network stays as it is and runs without gradients but for those of
    `feature_fusion`; only SAM2's half and the fusions train."""
    initial_lr: Positive = 1e-4
    """Peak learning rate of OneCycle (`learning_rate` in the original)."""
    weight_decay: NotNegative = 1e-4
    """Weight decay of AdamW."""
    early_stopping_patience: Count = 10
    """Epochs without a better EMA of the pseudo Dice, after which a training ends. They count once the learning rate
    has fallen below a tenth of its peak, so at least 86 % of all epochs and these run: 867 of 1000, and all of 76 or
    fewer."""
    bce_weight: NotNegative = 0.3
    """Weight of the binary cross-entropy in the loss."""
    dice_weight: NotNegative = 0.7
    """Weight of the Dice loss in the loss."""
    class_weights: Weights | None = None
    """A weight for each region, or for each class with background first; null: all equal."""
    unet_loss_weight: NotNegative = 1.0
    """Weight of the loss on the UNet's own outputs (deep supervision), beside the loss on the fused output."""
    sam2_loss_weight: NotNegative = 1.0
    """Weight of the loss on SAM2's own masks, on the slices that it has seen."""
    joint_training: bool = False
    """True: SAM2's masks and the fused output train the UNet too, as in the original. False: its own outputs alone, so
    that it becomes what it would become without SAM2. Without the UNet's decoder SAM2's masks always train it."""
    test_run: bool = False
    """Four cases a split and two short epochs, to see that everything works (true in the original)."""
    num_epochs: Count | None = None
    """Epochs of a training run; null: nnU-Net's 1000."""
    num_iterations_per_epoch: Count | None = None
    """Training steps of an epoch; null: nnU-Net's 250."""
    num_val_iterations_per_epoch: Count | None = None
    """Validation batches of an epoch; null: nnU-Net's 50."""

    # Set by the trainer from dataset.json
    region_based: bool = False
    """True: overlapping regions and a sigmoid. False: exclusive labels, background first, and a softmax. The trainer
    sets it from `dataset.json`; give it in standalone use."""
    rgb_channels: tuple[Channel, Channel, Channel] | None = None
    """Input channels that SAM2 sees as red, green and blue; null: FLAIR, T1ce, T2 where the names are known."""

    # Set by the trainer from the plans
    intensity_middles: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """Middle of each channel's intensities as SAM2's images show them, 0 for z-scores; null: as nnU-Net's normalisation
    says."""
    intensity_widths: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Their width, 1 for z-scores; null: as nnU-Net's normalisation says."""
    black_background: bool | None = None
    """True: where all channels are 0, SAM2 sees black. Null: if nnU-Net normalises within the brain (or another mask),
    which leaves 0 outside of it."""

    @model_validator(mode="after")
    def _backbone_for_its_checkpoint(self) -> AutoSAM2Config:
        fits = self.backbone_checkpoint is None or self.backbone == "plans"
        self._require("backbone_checkpoint", fits, "null, or a file or auto with backbone = plans")
        fits = self.encoder_checkpoint is None or (self.backbone == "plans" and self.backbone_checkpoint is None)
        self._require("encoder_checkpoint", fits, "null, or a file with backbone = plans and no backbone_checkpoint")
        return self

    @model_validator(mode="after")
    def _frozen_as_it_was_trained(self) -> AutoSAM2Config:
        trained = self.backbone_checkpoint is not None
        self._require("freeze_backbone", trained or not self.freeze_backbone, "false without a backbone_checkpoint")
        clash = self.freeze_backbone and self.joint_training
        self._require("joint_training", not clash, "false with freeze_backbone = true")
        return self

    @model_validator(mode="after")
    def _features_have_a_decoder(self) -> AutoSAM2Config:
        clash = self.feature_fusion and not self.enable_unet_decoder
        self._require("feature_fusion", not clash, "false with enable_unet_decoder = false")
        return self

    @model_validator(mode="after")
    def _masks_or_features(self) -> AutoSAM2Config:
        without = self.fusion == "off"
        self._require(
            "fusion", self.feature_fusion or not without, "fixed, gated or convolutional with feature_fusion = false"
        )
        self._require("propagation", not without or self.propagation == "linear", "linear with fusion = off")
        return self

    @model_validator(mode="after")
    def _mask_prompt_of_all_parts(self) -> AutoSAM2Config:
        clash = self.mask_prompt and self.boxes_per_region > 1
        self._require("boxes_per_region", not clash, "1 with mask_prompt = true")
        return self

    @model_validator(mode="after")
    def _some_loss(self) -> AutoSAM2Config:
        self._require("bce_weight", self.bce_weight + self.dice_weight > 0, "more than 0 when dice_weight is 0")
        return self

    @model_validator(mode="after")
    def _something_trains_the_unet(self) -> AutoSAM2Config:
        trains = self.uses_sam2 and self.enable_unet_decoder and self.unet_outputs_train
        if self.unet_loss_weight == 0 and trains and not self.joint_training:
            raise ConfigurationError(
                "unet_loss_weight = 0 leaves nothing that trains the UNet. Set joint_training = true or another weight."
            )
        return self

    @model_validator(mode="after")
    def _something_predicts(self) -> AutoSAM2Config:
        if not self.enable_unet_decoder and not self.uses_sam2:
            raise ConfigurationError(
                "enable_unet_decoder is false and SAM2 is off (enable_sam2 is false or slice_fraction is 0): "
                "nothing is left to predict with. Switch one of the two on."
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, values: Any, handler: ModelWrapValidatorHandler[AutoSAM2Config]) -> AutoSAM2Config:
        if not isinstance(values, Mapping):
            return handler(values)
        try:
            return handler({key: _as_field(value) for key, value in values.items()})
        except ValidationError as error:
            raise cls._error(error, values) from error

    @classmethod
    def _error(cls, error: ValidationError, values: Mapping[str, Any]) -> ConfigurationError:
        """One line on the first unknown key, else on the first impossible value."""
        known = list(cls.model_fields)
        # pydantic does not name a key that is no Unicode
        keys = [str(key) for key in values if key not in known]
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        keys += [str(each["loc"][0]) for each in errors if each["loc"]]
        for key in keys:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" Did you mean {near[0]}?" if near else f" Known keys: {', '.join(known)}."
                return ConfigurationError(f"{shown(key)} is not a parameter of AutoSAM2.{hint}")
        return _impossible(keys[0], values[keys[0]], in_words(cls.model_json_schema()["properties"][keys[0]]))

    @property
    def uses_sam2(self) -> bool:
        """At a slice fraction of 0 the SAM2 branch neither exists nor costs anything."""
        return self.enable_sam2 and self.slice_fraction > 0

    @property
    def slice_fraction_of_axis(self) -> float:
        """Fraction of the slices along each of the axes that SAM2 sees."""
        return self.slice_fraction / self.slice_axes

    @property
    def makes_masks(self) -> bool:
        """Otherwise SAM2 runs for its embeddings alone, or not at all."""
        return self.uses_sam2 and self.fusion != "off"

    @property
    def has_gate(self) -> bool:
        """The fusion learns where to trust SAM2, by a term of its own in the loss."""
        return self.fusion in ("gated", "convolutional")

    @property
    def unet_outputs_train(self) -> bool:
        """The UNet's own outputs have a loss: by itself, or by features of SAM2 in it."""
        return not self.freeze_backbone or (self.feature_fusion and self.uses_sam2)

    @property
    def slices_at_once(self) -> tuple[int, int]:
        """Slices that SAM2 gets at once, on a CPU and on a GPU."""
        if self.sam2_chunk_size:
            return self.sam2_chunk_size, self.sam2_chunk_size
        pixels = (PIXELS_AT_ONCE, PIXELS_AT_ONCE_ON_GPU[self.backbone])
        on_cpu, on_gpu = (max(1, each // self.sam2_image_size**2) for each in pixels)
        return on_cpu, on_gpu

    def blends(self, outputs: int) -> list[float]:
        """The UNet's weight in each of the network's outputs."""
        background = [] if self.region_based else [self.bg_blend]
        return background + [self.tumor_blend] * (outputs - len(background))

    def _require(self, key: str, fulfilled: bool, allowed: str) -> None:
        if not fulfilled:
            raise _impossible(key, getattr(self, key), allowed)

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
        for key in ("intensity_middles", "intensity_widths"):
            values = getattr(self, key)
            self._require(key, values is None or len(values) == channels, f"null, or {channels} numbers, one a channel")
        weights = f"null, or {outputs} numbers, one for each region, or for each class with background first"
        self._require("class_weights", self.class_weights is None or len(self.class_weights) == outputs, weights)

    def updated(self, changes: Mapping[str, Any]) -> AutoSAM2Config:
        """A copy with `changes`, validated; unknown keys raise ConfigurationError and name the nearest known one."""
        return self.from_dict({**vars(self), **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoSAM2Config:
        """Reads the `autosam2` block of a plans configuration; missing keys keep their defaults."""
        if not isinstance(values, Mapping):
            raise ConfigurationError(
                f"the {PLANS_KEY} block of the plans has to map keys to values, got {shown(repr(values), VALUE_SHOWN)}."
            )
        return cls.model_validate(values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the exact inverse of `from_dict`."""
        return self.model_dump(mode="json")

    def differences(self, other: AutoSAM2Config) -> dict[str, tuple[Any, Any]]:
        """Key → (own value, other's value) for every key that differs."""
        mine, theirs = vars(self), vars(other)
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


def _impossible(key: str, value: Any, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"{key} = {shown(repr(value), VALUE_SHOWN)} is not possible: it has to be {allowed}.")


def _as_field(value: Any) -> Any:
    """JSON's types as the fields': a tuple is a list there, and 2.0 is the whole number 2."""
    if isinstance(value, list):
        return tuple(map(_as_field, value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return math.inf
    return value
