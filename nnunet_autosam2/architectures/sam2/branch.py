"""The SAM2 half of the network, on a batch of slices."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.bridge import Bridge
from nnunet_autosam2.architectures.masks import ImageEmbeddings, SliceMasks
from nnunet_autosam2.architectures.mri_to_rgb import MRIToRGB
from nnunet_autosam2.architectures.prompts import NOT_A_POINT, Prompts, generate_prompts
from nnunet_autosam2.architectures.sam2 import weights
from nnunet_autosam2.architectures.sam2.chunking import Chunked
from nnunet_autosam2.architectures.sam2.encoded_slices import EncodedSlices
from nnunet_autosam2.architectures.sam2.model import SAM2, Memory, is_faster_in_bfloat16
from nnunet_autosam2.architectures.sam2.tuning import ENCODER_TRAINS, set_tuning
from nnunet_autosam2.architectures.sam2.union import united
from nnunet_autosam2.architectures.training_window import TrainingWindow
from nnunet_autosam2.config import AutoSAM2Config

MASKS_PER_SLICE = 3
"""Masks of a slice that are decoded at once, times the slices that SAM2 gets at once; of more masks a slice, fewer
slices. Prompts are made for as many at once on a GPU"""
PROMPTS_PER_MASK_ON_CPU = 4
"""and for so many times as many on a CPU: they need less memory"""
PIXELS_KEPT = 160 * 512**2
"""of slices whose embeddings are kept for a volume's next tiles: 16 bytes a pixel, or 8 in bfloat16"""
CERTAIN = 1e-6
"""Probabilities nearer to 0 or 1 are not told apart in a mask prompt."""


class SAM2Branch(nn.Module):
    """MRI to RGB, image encoder, bridge, prompts and mask decoder.

    The image encoder runs once a slice, whatever the number of regions; without gradients unless it is tuned.
    """

    deep_supervision = False
    """True: the masks are for a loss."""

    def __init__(self, in_channels: int, middle_channels: int, num_regions: int, config: AutoSAM2Config) -> None:
        super().__init__()
        self.sam2 = SAM2.build(config.sam2_model, config.sam2_image_size, memory=config.propagation == "memory")
        set_tuning(self.sam2, config.sam2_tuning, config.lora_rank, config.mask_prompt, config.makes_masks)
        rgb_channels = config.rgb_channels or tuple(i % in_channels for i in range(3))
        self.mri_to_rgb = MRIToRGB(
            in_channels, rgb_channels, config.sam2_image_size,
            config.intensity_middles, config.intensity_widths, bool(config.black_background),
        )  # fmt: skip
        self.bridge = Bridge(middle_channels, num_regions, self.sam2.sam_image_embedding_size)
        self.bridge.requires_grad_(config.makes_masks)
        self.encoder_trains = config.sam2_tuning in ENCODER_TRAINS
        self.mri_to_rgb.requires_grad_(self.encoder_trains)
        self.training_window = TrainingWindow()
        self.precision: str = config.sam2_precision
        self.encoded_before: EncodedSlices | None = None
        self.awaits_weights = True
        """Neither `load_weights` nor a state dict has brought any yet: not even random ones are used without a word."""
        self.register_load_state_dict_post_hook(_note_that_weights_came)
        size, size_on_gpu = config.slices_at_once
        recompute = not self.encoder_trains
        self.encoder_chunks = Chunked(size, "image encoder", recompute=recompute, size_on_gpu=size_on_gpu)
        self.decoder_chunks = Chunked(size, "mask decoder", size_on_gpu=size_on_gpu)
        masks, masks_on_gpu = PROMPTS_PER_MASK_ON_CPU * MASKS_PER_SLICE * size, MASKS_PER_SLICE * size_on_gpu
        self.prompt_chunks = Chunked(masks, "prompts", recompute=False, size_on_gpu=masks_on_gpu, unit="mask")

    def forward(
        self,
        slices: Tensor,
        features: Tensor,
        probabilities: Tensor,
        config: AutoSAM2Config,
        embeddings: ImageEmbeddings | None = None,
        regions: Tensor | None = None,
    ) -> tuple[SliceMasks, Prompts, ImageEmbeddings]:
        """Masks of R regions on N slices, what they were prompted with, and the embeddings of the slices.

        Args:
            slices: [N, C, H, W] z-scores.
            features: [N, F, H / 4, W / 4] of the UNet.
            probabilities: [N, R, H, W], the UNet's opinion, for the prompts.
            config: which prompts.
            embeddings: of the slices, where they are known.
            regions: [N, M], those that SAM2 is prompted for on each slice; masks and prompts are of these M then.
        """
        if regions is not None:
            probabilities = probabilities.take_along_dim(regions[..., None, None], dim=1)
        # First, as they wait for what a GPU has been given to do.
        prompts = self.prompts(probabilities, config)
        embeddings = self.encode(slices) if embeddings is None else embeddings
        dense = features, probabilities if config.mask_prompt else None, regions
        masks = self.decode(embeddings, prompts, dense, probabilities.shape[2:], config.boxes_per_region)
        return masks, prompts, embeddings

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles in place what holds the operations: the rest differs from patch to patch."""
        self.sam2.image_encoder.compile(*args, **kwargs)
        self.sam2.sam_mask_decoder.compile(*args, **kwargs)

    def halve_chunks(self) -> bool:
        """After a pass that has run out of memory; False if it went slice by slice already."""
        return self.encoder_chunks.halve() | self.decoder_chunks.halve()

    def require_weights(self, config: AutoSAM2Config) -> None:
        """Loads weights from where the configuration says, if none have come from elsewhere.

        Raises:
            WeightsError: there are none, or they do not fit the model.
        """
        if self.awaits_weights or not self.sam2.has_weights:
            self.load_weights(config)

    def load_weights(self, config: AutoSAM2Config) -> None:
        """Loads the checkpoint that the configuration names; raises as `require_weights`."""
        self.awaits_weights = False
        path = weights.obtain(config)
        if path is None:
            self.sam2.allow_random_weights()
        else:
            weights.load_into(self.sam2, weights.read_checkpoint(path), path)

    def prompts(self, probabilities: Tensor, config: AutoSAM2Config) -> Prompts:
        """Prompts [N, R, ...] from probabilities [N, R, H, W]."""
        masks = probabilities.flatten(0, 1)
        generate = partial(
            generate_prompts,
            num_positive=config.num_positive_points,
            num_negative=config.num_negative_points,
            box=config.box_prompt,
            parts=config.boxes_per_region,
            least=config.prompt_threshold,
        )
        # Masks of like area together: in a chunk the largest decides what all of them cost.
        order = (masks > config.prompt_threshold).flatten(1).sum(1).argsort()
        ordered = self.prompt_chunks(generate, masks[order])
        return Prompts(*(values[order.argsort()].unflatten(0, probabilities.shape[:2]) for values in ordered))

    def encode(self, slices: Tensor) -> ImageEmbeddings:
        """[N, C, H, W] → embeddings in the precision that they were computed with."""
        encode = partial(self.encoder_chunks, self._encode_chunk)
        with torch.set_grad_enabled(self.encoder_trains and torch.is_grad_enabled()):
            return encode(slices) if self.encoded_before is None else self.encoded_before(encode, slices)

    @contextmanager
    def encodes_each_slice_once(self) -> Iterator[None]:
        """While a volume is predicted tile by tile: tiles share slices."""
        self.encoded_before = EncodedSlices(PIXELS_KEPT // self.sam2.image_size**2)
        try:
            yield
        finally:
            self.encoded_before = None

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
        return self.precision == "bfloat16" or (self.precision == "auto" and is_faster_in_bfloat16(device))

    def decode(
        self,
        embeddings: ImageEmbeddings,
        prompts: Prompts,
        dense: tuple[Tensor | None, ...],
        slice_size: Sequence[int],
        parts: int = 1,
    ) -> SliceMasks:
        """Masks from the embeddings of N slices and their prompts.

        Args:
            dense: what `dense_prompt` takes: its results need more memory, so that they are made chunk by chunk.
            slice_size: height and width of the slices, in whose pixels the points are.
            parts: of a region, T, for which there are prompts; their masks are united.
        """
        height, width = slice_size
        scale = prompts.points.new_tensor([self.sam2.image_size / width, self.sam2.image_size / height])
        points, labels = (each.unflatten(2, (parts, -1)) for each in (prompts.points * scale, prompts.labels))
        cost = max(1, labels.shape[1] / MASKS_PER_SLICE)
        return self.decoder_chunks(self._decode_chunk, *embeddings, points, labels, *dense, cost=cost)

    def _decode_chunk(
        self, image: Tensor, fine: Tensor, middle: Tensor, points: Tensor, labels: Tensor, *dense: Any
    ) -> SliceMasks:
        """The first parts of all regions, and those of the further ones that there are: most regions have one."""
        embeddings, dense_prompt = ImageEmbeddings(image, fine, middle), self.dense_prompt(*dense)
        masks = self._decode_prompts(embeddings, points[:, :, 0], labels[:, :, 0], dense_prompt)
        if points.shape[2] == 1:
            return masks
        at_slice, region, part = (labels[:, :, 1:] != NOT_A_POINT).any(3).nonzero(as_tuple=True)
        if len(part) == 0:
            return masks
        embeddings = ImageEmbeddings(*(values[at_slice] for values in embeddings))
        points, labels = (values[at_slice, region, part + 1][:, None] for values in (points, labels))
        further = self._decode_prompts(embeddings, points, labels, dense_prompt[at_slice, region][:, None])
        return united(masks, further, at_slice, region)

    def _decode_prompts(
        self, embeddings: ImageEmbeddings, points: Tensor, labels: Tensor, dense_prompt: Tensor
    ) -> SliceMasks:
        with self._decoder_precision(points.device):
            masks = self.sam2.decode(embeddings, points, labels, dense_prompt)
        return SliceMasks(*(values.float() for values in masks))

    def dense_prompt(
        self, features: Tensor, probabilities: Tensor | None = None, regions: Tensor | None = None
    ) -> Tensor:
        """[N, R, 256, S / 16, S / 16] from the UNet's features, and from its probabilities as a mask prompt; of the M
        `regions` in the place of all R where they are given.
        """
        dense = self.bridge(features, regions)
        return dense if probabilities is None else dense + self.mask_prompt(probabilities)

    def mask_prompt(self, probabilities: Tensor) -> Tensor:
        """[N, R, H, W] → [N, R, 256, S / 16, S / 16]."""
        logits = torch.logit(probabilities.float(), eps=CERTAIN)
        logits = F.interpolate(logits, size=(self.sam2.image_size // 4,) * 2, mode="bilinear", align_corners=False)
        return self.sam2.mask_prompt(logits.flatten(0, 1)).unflatten(0, probabilities.shape[:2])

    def remember(self, embeddings: ImageEmbeddings, masks: SliceMasks) -> Memory:
        """SAM2's memory of N slices and their masks."""
        return self.decoder_chunks(self._remember_chunk, embeddings.image, *masks)

    def _remember_chunk(self, image: Tensor, *masks: Tensor) -> Memory:
        with self._precision(image.device):
            memory = self.sam2.remember(image, SliceMasks(*masks))
        return Memory(*(values.float() for values in memory))

    def recall(self, embeddings: ImageEmbeddings, dense: Tensor, memories: Memory, length: int) -> SliceMasks:
        """Masks of N slices from the memory of others, as SAM2.recall."""
        return self.decoder_chunks(partial(self._recall_chunk, length), *embeddings, dense, *memories)

    def _recall_chunk(
        self, length: int, image: Tensor, fine: Tensor, middle: Tensor, dense: Tensor, *memories: Tensor
    ) -> SliceMasks:
        with self._precision(image.device):
            masks = self.sam2.recall(ImageEmbeddings(image, fine, middle), dense, Memory(*memories), length)
        return SliceMasks(*(values.float() for values in masks))


def _note_that_weights_came(branch: SAM2Branch, _: object) -> None:
    branch.awaits_weights = False
