"""The SAM2 half of the network, on a batch of slices."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.bridge import Bridge
from nnunet_autosam2.architectures.chunking import Chunked
from nnunet_autosam2.architectures.mri_to_rgb import MRIToRGB
from nnunet_autosam2.architectures.prompts import Prompts, generate_prompts
from nnunet_autosam2.architectures.sam2_model import SAM2, ImageEmbeddings, MaskPrediction, supports_bfloat16
from nnunet_autosam2.config import AutoSAM2Config


class SliceMasks(NamedTuple):
    """Of N slices and R regions."""

    logits: Tensor
    """[N, R, H, W]"""
    predicted_iou: Tensor
    """[N, R]"""
    object_score: Tensor
    """[N, R]"""
    points: Tensor
    """[N, R, P, 2]"""
    labels: Tensor
    """[N, R, P]"""

    def replaced(self, asked: Tensor, answers: "SliceMasks") -> "SliceMasks":
        """These masks with those of the slices `asked` [N] replaced by `answers`, in order."""
        return SliceMasks(*(own.index_put((asked,), new) for own, new in zip(self, answers, strict=True)))


class SAM2Branch(nn.Module):
    """MRI to RGB, image encoder, bridge, prompts and mask decoder.

    The image encoder runs once a slice, whatever the number of regions; without gradients unless it is tuned.
    """

    def __init__(self, in_channels: int, middle_channels: int, num_regions: int, config: AutoSAM2Config) -> None:
        super().__init__()
        self.sam2 = SAM2(config.sam2_model, config.sam2_image_size, config.sam2_tuning)
        rgb_channels = config.rgb_channels or tuple(i % in_channels for i in range(3))
        self.mri_to_rgb = MRIToRGB(in_channels, rgb_channels, config.sam2_image_size)
        self.bridge = Bridge(middle_channels, num_regions, self.sam2.embedding_size)
        self.encoder_trains = config.sam2_tuning == "full"
        self.mri_to_rgb.requires_grad_(self.encoder_trains)
        self.precision = config.sam2_precision
        self.encoder_chunks = Chunked(config.sam2_chunk_size, "image encoder")
        self.decoder_chunks = Chunked(config.sam2_chunk_size, "mask decoder")

    def forward(
        self, slices: Tensor, features: Tensor, probabilities: Tensor, num_positive: int, num_negative: int
    ) -> SliceMasks:
        """
        Args:
            slices: [N, C, H, W] z-scores.
            features: [N, F, H / 4, W / 4] of the UNet.
            probabilities: [N, R, H, W], the UNet's opinion, for the prompts.
            num_positive, num_negative: points a region and slice.
        """
        embeddings = self.encode(slices)
        dense = self.bridge(features)
        prompts = generate_prompts(probabilities.flatten(0, 1), num_positive, num_negative)
        return self.decode(embeddings, prompts, dense, probabilities.shape)

    def encode(self, slices: Tensor) -> ImageEmbeddings:
        """[N, C, H, W] → embeddings in float32."""
        with torch.set_grad_enabled(self.encoder_trains and torch.is_grad_enabled()):
            return self.encoder_chunks(self._encode_chunk, slices)

    def _encode_chunk(self, slices: Tensor) -> ImageEmbeddings:
        with self._precision(slices.device):
            embeddings = self.sam2.encode(self.mri_to_rgb(slices))
        return ImageEmbeddings(*(values.float() for values in embeddings))

    def _precision(self, device: torch.device) -> torch.autocast:
        half = self.precision == "bfloat16" or (self.precision == "auto" and supports_bfloat16(device))
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)

    def decode(self, embeddings: ImageEmbeddings, prompts: Prompts, dense: Tensor, size: torch.Size) -> SliceMasks:
        """Masks of `size` [N, R, H, W] from N embeddings and N · R prompts."""
        n, regions, height, width = size
        points = prompts.points.view(n, regions, -1, 2)
        labels = prompts.labels.view(n, regions, -1)
        scale = points.new_tensor([self.sam2.image_size / width, self.sam2.image_size / height])
        masks = self.decoder_chunks(self._decode_chunk, *embeddings, points * scale, labels, dense)
        logits = F.interpolate(masks.logits.float(), size=(height, width), mode="bilinear", align_corners=False)
        return SliceMasks(logits, masks.predicted_iou.float(), masks.object_score.float(), points, labels)

    def _decode_chunk(
        self, image: Tensor, fine: Tensor, middle: Tensor, points: Tensor, labels: Tensor, dense: Tensor
    ) -> MaskPrediction:
        """As SAM2.decode, with the regions in dimension 1 of points, labels, dense prompts and result."""
        regions = labels.shape[1]

        def repeated(x: Tensor) -> Tensor:
            return x.repeat_interleave(regions, dim=0)

        masks = self.sam2.decode(
            ImageEmbeddings(repeated(image), repeated(fine), repeated(middle)),
            points.flatten(0, 1),
            labels.flatten(0, 1),
            dense.flatten(0, 1),
        )
        return MaskPrediction(*(values.unflatten(0, (-1, regions)) for values in masks))
