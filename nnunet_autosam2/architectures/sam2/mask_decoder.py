"""SAM2's mask decoder for several prompts an image, in matrix products alone."""

import itertools

import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2.architectures.masks import SliceMasks


class BatchedMaskDecoder(MaskDecoder):
    """The one mask that SAM2 gives a prompt; weights and results are those of the package's decoder.

    That one copies every image for each of its prompts, and upsamples by transposed convolutions. As their kernels are
    as large as their strides, each is a linear layer, from a token to the block of four that it becomes. Here blocks
    stay together to the end, where only the mask is brought into the order of its pixels.
    """

    def forward(
        self, image: Tensor, fine: Tensor, middle: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor
    ) -> SliceMasks:
        """
        Args:
            image: [N, 256, E, E], or [M, 256, E, E] where each of M = N · R prompts has one of its own.
            fine, middle: [N, 32, 4 E, 4 E] and [N, 64, 2 E, 2 E].
            positions: [1, 256, E, E], encoded.
            sparse: [M, P, 256], prompts, those of a slice one after the other.
            dense: [M, 256, E, E], prompts.
        """
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        tokens, pixels = self.transformer(_added(dense, image), positions, tokens)
        object_token, iou_token, mask_token = tokens[:, :3].unbind(1)

        to_double, norm, activation, to_quadruple, last_activation = self.output_upscaling
        pixels = pixels.unflatten(1, dense.shape[-2:])  # [M, E, E, 256]
        pixels = _added(_upsampled(pixels, to_double), _blocks(middle, 1))
        pixels = activation(F.layer_norm(pixels, pixels.shape[-1:], norm.weight, norm.bias, norm.eps))
        pixels = last_activation(_added(_upsampled(pixels, to_quadruple), _blocks(fine, 2)))
        logits = pixels.flatten(1, -2) @ self.output_hypernetworks_mlps[0](mask_token)[..., None]
        masks = (
            _in_order(logits.view(pixels.shape[:-1])),
            self.iou_prediction_head(iou_token)[:, 0],
            self.pred_obj_score_head(object_token)[:, 0],
            mask_token,
        )
        return SliceMasks(*(values.unflatten(0, (len(fine), -1)) for values in masks))


def _added(prompted: Tensor, images: Tensor) -> Tensor:
    """[M, ...] and [N, ...], where M is a multiple of N → [M, ...]"""
    return (prompted.unflatten(0, (len(images), -1)) + images[:, None]).flatten(0, 1)


def _upsampled(x: Tensor, convolution: nn.ConvTranspose2d) -> Tensor:
    """[..., C] → [..., 2, 2, C'], what a transposed convolution with a kernel and stride of 2 makes of each pixel."""
    assert convolution.bias is not None
    weight = convolution.weight.permute(2, 3, 1, 0)  # [2, 2, C', C]
    return F.linear(x, weight.flatten(0, 2), convolution.bias.repeat(4)).unflatten(-1, weight.shape[:3])


def _blocks(x: Tensor, doublings: int) -> Tensor:
    """[N, C, 2^d E, 2^d E] → [N, E, E, 2, 2, ..., C], with two dimensions of 2, of rows and columns, a doubling d."""
    sides = [-1] + [2] * doublings
    x = x.unflatten(3, sides).unflatten(2, sides)  # [N, C, E, 2, ..., E, 2, ...]
    rows, columns = range(2, 3 + doublings), range(3 + doublings, x.ndim)
    return x.permute(0, *itertools.chain(*zip(rows, columns, strict=True)), 1)


def _in_order(x: Tensor) -> Tensor:
    """[M, E, E, 2, 2, ...] → [M, 2^d E, 2^d E], the reverse."""
    rows, columns = range(1, x.ndim, 2), range(2, x.ndim, 2)
    return x.permute(0, *rows, *columns).flatten(len(rows) + 1).flatten(1, len(rows))
