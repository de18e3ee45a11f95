"""SAM2 as its package builds it, with the names of official checkpoints, for batches of slices with their prompts."""

import platform
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import sam2
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.masks import ImageEmbeddings, SliceMasks
from nnunet_autosam2.architectures.sam2.mask_decoder import BatchedMaskDecoder
from nnunet_autosam2.architectures.sam2.weights import VIDEO_MEMORY
from nnunet_autosam2.architectures.sam2.windowed_attention import skip_padding


class Memory(NamedTuple):
    """Entry of SAM2's memory, for a slice and its masks."""

    features: Tensor
    """[N, R, 64, S / 16, S / 16]"""
    pointer: Tensor
    """[N, R, 256], of the object"""


class NoPositions(nn.Module):
    """Stands in for encodings that no mask needs: SAM2 makes them for each image, at each scale, and keeps them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(x.shape)


class SAM2(SAM2Base):
    """Image encoder, prompt encoder and mask decoder (Ravi et al., SAM 2, 2024), and its memory if that was asked for.

    Made by `SAM2.build`. The weights are random until a checkpoint is loaded.
    """

    no_mem_embed: nn.Parameter

    @classmethod
    def build(cls, model: str, image_size: int, *, memory: bool = False) -> "SAM2":
        """
        Args:
            model: for example `sam2.1-hiera-tiny`.
            image_size: side length S of the images in pixels.
            memory: keep the parts for video, which `remember` and `recall` need.
        """
        # Not by the package's build_sam2: it asks Hydra's global state, which may be an application's.
        config_file, _ = HF_MODEL_ID_TO_FILENAMES[f"facebook/{model}"]
        config = OmegaConf.load(Path(sam2.__path__[0], config_file)).model
        config._target_ = f"{cls.__module__}.{cls.__qualname__}"
        config.image_size = image_size
        built = instantiate(config).eval()
        skip_padding(built.image_encoder.trunk)
        built.sam_mask_decoder.__class__ = BatchedMaskDecoder
        neck = built.image_encoder.neck
        built.image_positions, neck.position_encoding = neck.position_encoding, NoPositions()
        built.image_positions.cache.clear()  # with a GPU it holds those of 1024 pixels
        if not memory:
            for name in VIDEO_MEMORY & {*built._parameters, *built._modules}:
                delattr(built, name)
        built.register_load_state_dict_pre_hook(_refuse_a_part)
        return built

    @property
    def has_weights(self) -> bool:
        """False from `withhold_weights` until a checkpoint or a state dict has filled it."""
        return not bool(self.no_mem_embed.isnan().any())

    @torch.no_grad()
    def withhold_weights(self) -> None:
        """Keeps random weights from being taken for a checkpoint's: every mask is NaN, from a state dict as well."""
        self.no_mem_embed.fill_(torch.nan)

    def allow_random_weights(self) -> None:
        """Takes `withhold_weights` back, of this network or of one whose state dict has filled it."""
        if not self.has_weights:
            nn.init.trunc_normal_(self.no_mem_embed, std=0.02)  # as SAM2Base

    def encode(self, images: Tensor) -> ImageEmbeddings:
        """[N, 3, S, S], normalised → embeddings for the mask decoder."""
        fine, middle, image = self.forward_image(images)["backbone_fpn"]
        return ImageEmbeddings(image, fine, middle)

    def decode(self, embeddings: ImageEmbeddings, points: Tensor, labels: Tensor, dense: Tensor) -> SliceMasks:
        """One mask for each of R prompts on each of N slices.

        Args:
            points: [N, R, P, 2], (x, y) in pixels of the image of size S; a box is two points.
            labels: [N, R, P]: 1 positive, 0 negative, 2 and 3 the corners of a box, -1 not a point.
            dense: [N, R, 256, S / 16, S / 16], added to SAM2's own dense prompt.
        """
        # As SAM2ImagePredictor does: a single image is a video without a memory.
        image = embeddings.image + self.no_mem_embed.view(1, -1, 1, 1)
        return self._decode(embeddings._replace(image=image), points, labels, dense)

    def _decode(self, embeddings: ImageEmbeddings, points: Tensor, labels: Tensor, dense: Tensor) -> SliceMasks:
        prompts = points.flatten(0, 1), labels.flatten(0, 1)
        with torch.autocast(points.device.type, enabled=False):  # positions need more digits than bfloat16 has
            sparse, no_mask = self.sam_prompt_encoder(points=prompts, boxes=None, masks=None)
            positions = self.sam_prompt_encoder.get_dense_pe()
        return self.sam_mask_decoder(*embeddings, positions, sparse, no_mask + dense.flatten(0, 1))

    def mask_prompt(self, logits: Tensor) -> Tensor:
        """Mask logits [N, S / 4, S / 4] → [N, 256, S / 16, S / 16], a dense prompt for `decode`.

        It is the difference to SAM2's embedding of "no mask", and 0 for a mask that is empty.
        """
        prompt = self.sam_prompt_encoder.mask_downscaling(logits[:, None])
        difference = prompt - self.sam_prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        return torch.where((logits > 0).flatten(1).any(1)[:, None, None, None], difference, 0)

    def remember(self, image: Tensor, masks: SliceMasks) -> Memory:
        """Memory of N slices for later ones, `image` [N, 256, S / 16, S / 16], and of their masks."""
        regions = masks.object_score.shape[1]
        logits, _, object_score, token = (values.flatten(0, 1) for values in masks)
        present = object_score[:, None] > 0
        logits = torch.where(present[..., None, None], logits[:, None].float(), NO_OBJ_SCORE)
        features, _ = self._encode_new_memory(
            [_tokens(image.repeat_interleave(regions, dim=0))],
            [image.shape[-2:]],
            F.interpolate(logits, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False),
            object_score[:, None],
            is_mask_from_pts=False,
        )
        memory = features, torch.where(present, self.obj_ptr_proj(token), self.no_obj_ptr)
        return Memory(*(values.unflatten(0, (-1, regions)) for values in memory))

    def recall(self, embeddings: ImageEmbeddings, dense: Tensor, memories: Memory, length: int) -> SliceMasks:
        """Masks of N slices without points, from the memory of others.

        Args:
            dense: [N, R, 256, S / 16, S / 16], as for `decode`.
            memories: [N, M, R, ...], of the selected slice where the path to these slices starts, of the one on their
                other side, and of those on the path in order; these slices are the next.
            length: of the whole volume in slices.
        """
        regions = dense.shape[1]
        image = embeddings.image.repeat_interleave(regions, dim=0)
        of_slices = (values.transpose(0, 1).flatten(1, 2) for values in memories)
        start, end, *path = (Memory(*values) for values in zip(*of_slices, strict=True))
        positions = self.image_positions(image)
        memory_positions = self.memory_encoder.position_encoding(start.features)

        def entry(memory: Memory) -> dict:
            return {
                "maskmem_features": memory.features,
                "maskmem_pos_enc": [memory_positions],
                "obj_ptr": memory.pointer,
            }

        frame = len(path) + 1
        image = self._prepare_memory_conditioned_features(
            frame,
            False,
            [_tokens(image)],
            [_tokens(positions)],
            [image.shape[-2:]],
            {
                "cond_frame_outputs": {0: entry(start), frame + 1: entry(end)},
                "non_cond_frame_outputs": {i: entry(memory) for i, memory in enumerate(path, start=1)},
            },
            length,
        )
        points = image.new_zeros(len(dense), regions, 1, 2)
        labels = torch.full(points.shape[:-1], -1, dtype=torch.int32, device=image.device)
        return self._decode(embeddings._replace(image=image), points, labels, dense)


def _refuse_a_part(network: SAM2, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Keeps weights withheld where a state dict brings a part of them alone: that is none."""
    if not network.has_weights and any(prefix + name not in state for name in network.state_dict()):
        state.pop(prefix + "no_mem_embed", None)


def _tokens(image: Tensor) -> Tensor:
    """[N, C, H, W] → [H · W, N, C]"""
    return image.flatten(2).permute(2, 0, 1)


def is_faster_in_bfloat16(device: torch.device) -> bool:
    """Says whether the device multiplies matrices in bfloat16 faster than in float32.

    Of CPUs those with AMX, and AMD's with AVX-512 for it: Intel's, of which a virtual machine may hide AMX, multiply
    bfloat16 at 0.5 to 0.8 of the rate of float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and not _is_intels())


@cache
def _is_intels() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return "GenuineIntel" in (cpuinfo.read_text() if cpuinfo.exists() else platform.processor())
