"""Contents that plans may have: nnU-Net's own networks, operators and functions by name, and arguments of their types.

nnU-Net imports and calls whatever its plans name. What is read here is checked against these lists first.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

MOST_PARAMETERS = 2**30
"""Parameters of a planned network, roughly. nnU-Net's largest has a tenth of it."""
MOST_VOXELS = 2**28
"""Voxels of a patch"""

Count = Annotated[int, Field(strict=True, ge=1, le=64)]
Features = Annotated[int, Field(strict=True, ge=1, le=2**13)]
Stride = Annotated[int, Field(strict=True, ge=1, le=16)]
Kernel = Annotated[int, Field(strict=True, ge=1, le=31)]
Length = Annotated[int, Field(strict=True, ge=1, le=2**20)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Millimetres = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Flag = StrictBool

Convolution = Annotated[str, Field(strict=True, pattern=r"^torch\.nn\.(modules\.conv\.)?Conv[23]d$")]
Normalisation = Annotated[
    str,
    Field(strict=True, pattern=r"^torch\.nn\.(modules\.(instancenorm|batchnorm)\.)?(InstanceNorm|BatchNorm)[23]d$"),
]
Dropout = Annotated[str, Field(strict=True, pattern=r"^torch\.nn\.(modules\.dropout\.)?Dropout[23]d$")]
Nonlinearity = Annotated[
    str, Field(strict=True, pattern=r"^torch\.nn\.(modules\.activation\.)?(LeakyReLU|ReLU|PReLU|ELU|GELU|SiLU|Mish)$")
]
Block = Annotated[
    str,
    Field(strict=True, pattern=r"^dynamic_network_architectures\.building_blocks\.residual\.(BasicBlock|Bottleneck)D$"),
]
Operator = Literal["conv_op", "norm_op", "dropout_op", "nonlin", "block"]
Network = Literal[
    "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet",  # as old plans have it
]
Resampling = Literal["resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"]
Normalizer = Literal[
    "ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"
]
Reader = Literal[
    "SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient", "NaturalImage2DIO", "Tiff3DIO"
]


class Arguments(BaseModel):
    """Arguments of a function: nothing but these."""

    model_config = ConfigDict(extra="forbid")


class NormalisationArguments(Arguments):
    eps: Number = 1e-5
    affine: Flag = True
    momentum: Number | None = None
    track_running_stats: Flag = False


class DropoutArguments(Arguments):
    p: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.5
    inplace: Flag = False


class NonlinearityArguments(Arguments):
    inplace: Flag = False
    negative_slope: Number = 0.01


class ResamplingArguments(Arguments):
    is_seg: Flag = False
    order: Annotated[int, Field(strict=True, ge=0, le=5)] = 3
    order_z: Annotated[int, Field(strict=True, ge=0, le=5)] = 0
    force_separate_z: Flag | None = None
    separate_z_anisotropy_threshold: Number = 3
    memefficient_seg_resampling: Flag = False
    num_threads: Count = 4
    mode: Literal["linear", "bilinear", "trilinear", "bicubic", "nearest", "nearest-exact"] = "linear"
    aniso_axis_mode: Literal["linear", "bilinear", "bicubic", "nearest", "nearest-exact"] = "nearest-exact"


class NetworkArguments(Arguments):
    n_stages: Annotated[int, Field(strict=True, ge=2, le=16)]
    features_per_stage: list[Features]
    conv_op: Convolution
    kernel_sizes: list[list[Kernel]]
    strides: list[list[Stride]]
    n_conv_per_stage: list[Count] | None = None
    n_blocks_per_stage: list[Count] | None = None
    n_conv_per_stage_decoder: list[Count]
    conv_bias: Flag = False
    norm_op: Normalisation | None = None
    norm_op_kwargs: NormalisationArguments | None = None
    dropout_op: Dropout | None = None
    dropout_op_kwargs: DropoutArguments | None = None
    nonlin: Nonlinearity | None = None
    nonlin_kwargs: NonlinearityArguments | None = None
    nonlin_first: Flag = False
    deep_supervision: Flag = False
    block: Block | None = None
    bottleneck_channels: Features | list[Features] | None = None
    stem_channels: Features | None = None

    @model_validator(mode="after")
    def _consistent(self) -> NetworkArguments:
        for name, expected in (
            ("features_per_stage", self.n_stages),
            ("kernel_sizes", self.n_stages),
            ("strides", self.n_stages),
            ("n_conv_per_stage", self.n_stages),
            ("n_blocks_per_stage", self.n_stages),
            ("n_conv_per_stage_decoder", self.n_stages - 1),
        ):
            values = getattr(self, name)
            if values is not None and len(values) != expected:
                raise ValueError(f"{name} has {len(values)} entries, and {self.n_stages} stages need {expected}")
        axes = {int(self.conv_op[-2]), *map(len, self.kernel_sizes), *map(len, self.strides)}
        axes |= {int(operator[-2]) for operator in (self.norm_op, self.dropout_op) if operator}
        if len(axes) > 1:
            raise ValueError("operators, kernel_sizes and strides are not of one number of dimensions")
        if even := [kernel for kernel in self.kernel_sizes if any(size % 2 == 0 for size in kernel)]:
            raise ValueError(f"the kernel {even[0]} is even, and the output would not have the size of the input")
        layers = self.n_conv_per_stage or self.n_blocks_per_stage or [1] * self.n_stages
        stages = zip(self.features_per_stage, self.kernel_sizes, layers, strict=True)
        if sum(4 * count * features**2 * prod(kernel) for features, kernel, count in stages) > MOST_PARAMETERS:
            raise ValueError("the network is too large to be one that was trained")
        return self


class Architecture(BaseModel):
    network_class_name: Network
    arch_kwargs: NetworkArguments
    requires_import: list[Operator] = Field(alias="_kw_requires_import")

    @model_validator(mode="after")
    def _complete(self) -> Architecture:
        arguments = self.arch_kwargs
        layers = "n_conv_per_stage" if self.network_class_name.endswith("PlainConvUNet") else "n_blocks_per_stage"
        if getattr(arguments, layers) is None:
            raise ValueError(f"arch_kwargs lacks {layers}")
        given = {name for name in ("conv_op", "norm_op", "dropout_op", "nonlin", "block") if getattr(arguments, name)}
        if missing := sorted(given - set(self.requires_import)):
            raise ValueError(f"_kw_requires_import lacks {', '.join(missing)}")
        if unknown := sorted(set(self.requires_import) - arguments.model_fields_set):
            raise ValueError(f"_kw_requires_import has {', '.join(unknown)}, which arch_kwargs has not")
        return self


class NamedByConfiguration(BaseModel):
    """Parts of a configuration that nnU-Net imports or calls; whatever is missing is inherited."""

    inherits_from: StrictStr = ""
    architecture: Architecture | None = None
    preprocessor_name: Literal["DefaultPreprocessor"] | None = None
    normalization_schemes: list[Normalizer] | None = None
    resampling_fn_data: Resampling | None = None
    resampling_fn_seg: Resampling | None = None
    resampling_fn_probabilities: Resampling | None = None
    resampling_fn_data_kwargs: ResamplingArguments | None = None
    resampling_fn_seg_kwargs: ResamplingArguments | None = None
    resampling_fn_probabilities_kwargs: ResamplingArguments | None = None


class NamedByPlans(BaseModel):
    """Parts of plans that nnU-Net imports or calls."""

    image_reader_writer: Reader | None = None
    label_manager: Literal["LabelManager"] | None = None
    configurations: dict[StrictStr, NamedByConfiguration] = {}


class Configuration(NamedByConfiguration):
    """Configuration of plans, with all that it inherits: what a network and its images need."""

    architecture: Architecture
    preprocessor_name: Literal["DefaultPreprocessor"]
    normalization_schemes: Annotated[list[Normalizer], Field(min_length=1)]
    use_mask_for_norm: list[Flag]
    resampling_fn_data: Resampling
    resampling_fn_seg: Resampling
    resampling_fn_probabilities: Resampling
    resampling_fn_data_kwargs: ResamplingArguments
    resampling_fn_seg_kwargs: ResamplingArguments
    resampling_fn_probabilities_kwargs: ResamplingArguments
    data_identifier: StrictStr
    batch_size: Length
    patch_size: Annotated[list[Length], Field(min_length=2, max_length=3)]
    spacing: Annotated[list[Millimetres], Field(min_length=2, max_length=3)]
    previous_stage: StrictStr | None = None
    autosam2: dict[StrictStr, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Configuration:
        strides = self.architecture.arch_kwargs.strides
        if {len(self.spacing), len(strides[0])} != {len(self.patch_size)}:
            raise ValueError("patch_size, spacing and the network are not of one number of dimensions")
        if prod(self.patch_size) > MOST_VOXELS:
            raise ValueError(f"a patch of {self.patch_size} voxels is too large to be one that was trained on")
        for axis, size in enumerate(self.patch_size):
            if size % prod(stride[axis] for stride in strides):
                raise ValueError(f"the patch {self.patch_size} cannot be halved as often as the network's strides do")
        if len(self.use_mask_for_norm) != len(self.normalization_schemes):
            raise ValueError("use_mask_for_norm and normalization_schemes are not of one number of channels")
        return self


class Intensities(BaseModel):
    """Intensities in a channel's foreground, which CTNormalization uses."""

    mean: Number = 0
    std: Number = 1
    percentile_00_5: Number = 0
    percentile_99_5: Number = 0


class NamedDataset(BaseModel):
    dataset_name: Annotated[str, Field(strict=True, pattern=r"^Dataset\d{3}_[^/\\\x00-\x1f\x7f]+$")]


class Plans(NamedDataset):
    """Entries that all configurations share."""

    plans_name: StrictStr
    image_reader_writer: Reader
    label_manager: Literal["LabelManager"] = "LabelManager"
    transpose_forward: list[StrictInt]
    transpose_backward: list[StrictInt]
    foreground_intensity_properties_per_channel: dict[StrictStr, Intensities] = {}
    configurations: dict[StrictStr, dict[StrictStr, Any]]

    @model_validator(mode="after")
    def _permutations(self) -> Plans:
        for axes in (self.transpose_forward, self.transpose_backward):
            if sorted(axes) != [0, 1, 2]:
                raise ValueError(f"{axes} is no order of three axes")
        return self
