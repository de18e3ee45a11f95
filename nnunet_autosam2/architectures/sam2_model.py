"""The parts of SAM2 that segment single images, built by the sam2 package, with the names of official checkpoints."""

from typing import NamedTuple

import torch
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2
from torch import Tensor, nn

BACKBONE_STRIDE = 16


class ImageEmbeddings(NamedTuple):
    image: Tensor
    """[N, 256, S / 16, S / 16]"""
    fine: Tensor
    """[N, 32, S / 4, S / 4]"""
    middle: Tensor
    """[N, 64, S / 8, S / 8]"""


class MaskPrediction(NamedTuple):
    logits: Tensor
    """[N, S / 4, S / 4]"""
    predicted_iou: Tensor
    """[N], 0 to 1"""
    object_score: Tensor
    """[N], logit"""


class SAM2(nn.Module):
    """Image encoder, prompt encoder and mask decoder (Ravi et al., SAM 2, 2024), without the video memory.

    The weights are random until a checkpoint is loaded.

    Args:
        model: for example `sam2.1-hiera-tiny`.
        image_size: side length S of the images in pixels.
        tuning: what trains, see `AutoSAM2Config.sam2_tuning`.
    """

    def __init__(self, model: str, image_size: int, tuning: str) -> None:
        super().__init__()
        config_file, _ = HF_MODEL_ID_TO_FILENAMES[f"facebook/{model}"]
        complete = build_sam2(
            config_file,
            device="cpu",
            hydra_overrides_extra=[f"++model.image_size={image_size}"],
            apply_postprocessing=False,
        )
        self.image_encoder = complete.image_encoder
        self.no_mem_embed = complete.no_mem_embed
        self.sam_prompt_encoder = complete.sam_prompt_encoder
        self.sam_mask_decoder = complete.sam_mask_decoder
        self.image_size = image_size
        self.embedding_size = image_size // BACKBONE_STRIDE
        self._set_trainable(tuning)

    def _set_trainable(self, tuning: str) -> None:
        self.requires_grad_(tuning == "full")
        if tuning == "frozen":
            return
        self.sam_prompt_encoder.requires_grad_(True)
        self.sam_mask_decoder.requires_grad_(True)
        # These two run once an image, within the encoder's pass.
        for projection in (self.sam_mask_decoder.conv_s0, self.sam_mask_decoder.conv_s1):
            projection.requires_grad_(tuning == "full")
        # Without a part in the prediction: mask prompts, and the three alternatives to the one mask that is used.
        self.sam_prompt_encoder.mask_downscaling.requires_grad_(False)
        self.sam_mask_decoder.output_hypernetworks_mlps[1:].requires_grad_(False)

    def encode(self, images: Tensor) -> ImageEmbeddings:
        """[N, 3, S, S], normalised → embeddings for the mask decoder."""
        features = self.image_encoder(images)["backbone_fpn"]
        decoder = self.sam_mask_decoder
        # As SAM2ImagePredictor does: a single image is a video without a memory.
        image = features[2] + self.no_mem_embed.view(1, -1, 1, 1)
        return ImageEmbeddings(image, decoder.conv_s0(features[0]), decoder.conv_s1(features[1]))

    def decode(self, embeddings: ImageEmbeddings, points: Tensor, labels: Tensor, dense: Tensor) -> MaskPrediction:
        """One mask for each of N prompted images.

        Args:
            embeddings: N images.
            points: [N, P, 2], (x, y) in pixels of the image of size S; a box is two points.
            labels: [N, P]: 1 positive, 0 negative, 2 and 3 the corners of a box, -1 not a point.
            dense: [N, 256, S / 16, S / 16], added to SAM2's own dense prompt.
        """
        sparse, no_mask = self.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
        masks, iou, _, object_score = self.sam_mask_decoder(
            image_embeddings=embeddings.image,
            image_pe=self.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=no_mask + dense,
            multimask_output=False,
            repeat_image=False,
            high_res_features=[embeddings.fine, embeddings.middle],
        )
        return MaskPrediction(masks[:, 0], iou[:, 0], object_score[:, 0])


def supports_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
