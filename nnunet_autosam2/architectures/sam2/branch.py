"""The SAM2 half of the network, on a batch of slices."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.bridge import Bridge
from nnunet_autosam2.architectures.mri_to_rgb import MRIToRGB
from nnunet_autosam2.architectures.outputs import SliceMasks
from nnunet_autosam2.architectures.prompts import THRESHOLD, Prompts, generate_prompts
from nnunet_autosam2.architectures.sam2.chunking import Chunked
from nnunet_autosam2.architectures.sam2.mask_decoder import MaskPrediction
from nnunet_autosam2.architectures.sam2.model import SAM2, ImageEmbeddings, Memory, supports_bfloat16
from nnunet_autosam2.architectures.sam2.tuning import ENCODER_TRAINS, set_tuning
from nnunet_autosam2.config import AutoSAM2Config

MASKS_PER_SLICE = 3
"""For which prompts are made at once, times the slices that SAM2 gets at once"""
CERTAIN = 1e-6
"""Probabilities nearer to 0 or 1 are not told apart in a mask prompt."""


class Answers(NamedTuple):
    """Of SAM2 on N slices and R regions."""

    masks: SliceMasks
    embeddings: ImageEmbeddings
    prediction: MaskPrediction
    """As from SAM2.decode, with the regions in dimension 1"""


class SAM2Branch(nn.Module):
    """MRI to RGB, image encoder, bridge, prompts and mask decoder.

    The image encoder runs once a slice, whatever the number of regions; without gradients unless it is tuned.
    """

    def __init__(self, in_channels: int, middle_channels: int, num_regions: int, config: AutoSAM2Config) -> None:
        super().__init__()
        self.sam2 = SAM2.build(config.sam2_model, config.sam2_image_size, memory=config.propagation == "memory")
        set_tuning(self.sam2, config.sam2_tuning, config.lora_rank, config.mask_prompt)
        rgb_channels = config.rgb_channels or tuple(i % in_channels for i in range(3))
        self.mri_to_rgb = MRIToRGB(in_channels, rgb_channels, config.sam2_image_size)
        self.bridge = Bridge(middle_channels, num_regions, self.sam2.sam_image_embedding_size)
        self.encoder_trains = config.sam2_tuning in ENCODER_TRAINS
        self.mri_to_rgb.requires_grad_(self.encoder_trains)
        self.precision: str = config.sam2_precision
        size, size_on_gpu = config.slices_at_once
        self.encoder_chunks = Chunked(size, "image encoder", recompute=not self.encoder_trains, size_on_gpu=size_on_gpu)
        self.decoder_chunks = Chunked(size, "mask decoder", size_on_gpu=size_on_gpu)
        masks, masks_on_gpu = MASKS_PER_SLICE * size, MASKS_PER_SLICE * size_on_gpu
        self.prompt_chunks = Chunked(masks, "prompts", recompute=False, size_on_gpu=masks_on_gpu, unit="mask")

    def forward(self, slices: Tensor, features: Tensor, probabilities: Tensor, config: AutoSAM2Config) -> Answers:
        """
        Args:
            slices: [N, C, H, W] z-scores.
            features: [N, F, H / 4, W / 4] of the UNet.
            probabilities: [N, R, H, W], the UNet's opinion, for the prompts.
            config: which prompts.
        """
        # First, as they wait for what a GPU has been given to do.
        prompts = self.prompts(probabilities, config)
        embeddings = self.encode(slices)
        dense = (features, probabilities) if config.mask_prompt else (features,)
        return self.decode(embeddings, prompts, dense, probabilities.shape)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """In place, what holds the operations: the rest differs from patch to patch."""
        self.sam2.image_encoder.compile(*args, **kwargs)
        self.sam2.sam_mask_decoder.compile(*args, **kwargs)

    def halve_chunks(self) -> bool:
        """After a pass that has run out of memory; False if it went slice by slice already."""
        return self.encoder_chunks.halve() | self.decoder_chunks.halve()

    def prompts(self, probabilities: Tensor, config: AutoSAM2Config) -> Prompts:
        """For N · R masks, from probabilities [N, R, H, W]."""
        masks = probabilities.flatten(0, 1)
        generate = partial(
            generate_prompts,
            num_positive=config.num_positive_points,
            num_negative=config.num_negative_points,
            box=config.box_prompt,
        )
        # Masks of like area together: in a chunk the largest decides what all of them cost.
        order = (masks > THRESHOLD).flatten(1).sum(1).argsort()
        ordered = self.prompt_chunks(generate, masks[order])
        return Prompts(*(values[order.argsort()] for values in ordered))

    def encode(self, slices: Tensor) -> ImageEmbeddings:
        """[N, C, H, W] → embeddings in the precision that they were computed with."""
        with torch.set_grad_enabled(self.encoder_trains and torch.is_grad_enabled()):
            return self.encoder_chunks(self._encode_chunk, slices)

    def _encode_chunk(self, slices: Tensor) -> ImageEmbeddings:
        with self._precision(slices.device):
            return self.sam2.encode(self.mri_to_rgb(slices))

    def _precision(self, device: torch.device) -> torch.autocast:
        """bfloat16 or float32: float16, in which nnU-Net trains, was not SAM2's."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._uses_bfloat16(device))

    def _decoder_precision(self, device: torch.device) -> AbstractContextManager:
        """bfloat16, or whatever nnU-Net trains in."""
        return self._precision(device) if self._uses_bfloat16(device) else nullcontext()

    def _uses_bfloat16(self, device: torch.device) -> bool:
        return self.precision == "bfloat16" or (self.precision == "auto" and supports_bfloat16(device))

    def decode(
        self, embeddings: ImageEmbeddings, prompts: Prompts, dense: tuple[Tensor, ...], size: torch.Size
    ) -> Answers:
        """Masks of `size` [N, R, H, W] from N embeddings and N · R prompts.

        Args:
            dense: what `dense_prompt` takes: its results need more memory, so that they are made chunk by chunk.
        """
        n, regions, height, width = size
        points = prompts.points.view(n, regions, -1, 2)
        labels = prompts.labels.view(n, regions, -1)
        scale = points.new_tensor([self.sam2.image_size / width, self.sam2.image_size / height])
        prediction = self.decoder_chunks(self._decode_chunk, *embeddings, points * scale, labels, *dense)
        return Answers(self.to_slices(prediction, size, points, labels), embeddings, prediction)

    def _decode_chunk(
        self, image: Tensor, fine: Tensor, middle: Tensor, points: Tensor, labels: Tensor, *dense: Tensor
    ) -> MaskPrediction:
        prompts = (values.flatten(0, 1) for values in (points, labels, self.dense_prompt(*dense)))
        with self._decoder_precision(image.device):
            prediction = self.sam2.decode(ImageEmbeddings(image, fine, middle), *prompts)
        return MaskPrediction(*by_region(prediction, labels.shape[1]))

    def dense_prompt(self, features: Tensor, probabilities: Tensor | None = None) -> Tensor:
        """[N, R, 256, S / 16, S / 16] from the UNet's features, and from its probabilities as a mask prompt."""
        dense = self.bridge(features)
        return dense if probabilities is None else dense + self.mask_prompt(probabilities)

    def mask_prompt(self, probabilities: Tensor) -> Tensor:
        """[N, R, H, W] → [N, R, 256, S / 16, S / 16]."""
        logits = torch.logit(probabilities.float(), eps=CERTAIN)
        logits = F.interpolate(logits, size=(self.sam2.image_size // 4,) * 2, mode="bilinear", align_corners=False)
        return self.sam2.mask_prompt(logits.flatten(0, 1)).unflatten(0, probabilities.shape[:2])

    def to_slices(self, prediction: MaskPrediction, size: torch.Size, points: Tensor, labels: Tensor) -> SliceMasks:
        """Masks at the resolution of the slices, `size` [N, R, H, W]."""
        logits = F.interpolate(prediction.logits, size=size[2:], mode="bilinear", align_corners=False)
        return SliceMasks(logits, prediction.predicted_iou, prediction.object_score, points, labels)

    def remember(self, embeddings: ImageEmbeddings, prediction: MaskPrediction) -> Memory:
        """SAM2's memory [N, R, ...] of N slices and their masks."""
        return self.decoder_chunks(self._remember_chunk, embeddings.image, *prediction)

    def _remember_chunk(self, image: Tensor, *prediction: Tensor) -> Memory:
        regions = prediction[0].shape[1]
        with self._precision(image.device):
            masks = MaskPrediction(*(values.flatten(0, 1) for values in prediction))
            memory = self.sam2.remember(image.repeat_interleave(regions, dim=0), masks)
        return Memory(*by_region(memory, regions))

    def recall(self, embeddings: ImageEmbeddings, dense: Tensor, memories: Memory, length: int) -> MaskPrediction:
        """Masks [N, R, ...] of N slices from M memories [N, M, R, ...] of each, in the order of SAM2.recall."""
        return self.decoder_chunks(partial(self._recall_chunk, length), *embeddings, dense, *memories)

    def _recall_chunk(
        self, length: int, image: Tensor, fine: Tensor, middle: Tensor, dense: Tensor, *memories: Tensor
    ) -> MaskPrediction:
        regions = dense.shape[1]
        embeddings = ImageEmbeddings(image.repeat_interleave(regions, dim=0), fine, middle)
        each = [
            Memory(*values) for values in zip(*(value.transpose(0, 1).flatten(1, 2) for value in memories), strict=True)
        ]
        with self._precision(image.device):
            prediction = self.sam2.recall(embeddings, dense.flatten(0, 1), each, length)
        return MaskPrediction(*by_region(prediction, regions))


def by_region(values: Iterable[Tensor], regions: int) -> Iterator[Tensor]:
    """[N · R, ...] → [N, R, ...] in float32."""
    return (value.float().unflatten(0, (-1, regions)) for value in values)
