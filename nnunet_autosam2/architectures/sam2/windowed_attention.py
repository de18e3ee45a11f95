"""The windowed attention of SAM2's image encoder, without computing the padding of its windows."""

import torch
from sam2.modeling.backbones.hieradet import MultiScaleBlock, do_pool
from sam2.modeling.backbones.utils import window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn import functional as F


def skip_padding(trunk: nn.Module) -> None:
    """Changes the blocks of a Hiera in place; weights and results stay the same.

    Hiera pads its feature maps with zeros to whole windows, before the linear layers of the attention. At an image size
    of 256 two thirds of what the third stage's layers compute is padding: 16 × 16 tokens become 28 × 28.
    """
    for block in trunk.modules():
        if isinstance(block, MultiScaleBlock) and block.window_size:
            block.__class__ = UnpaddedBlock


class UnpaddedBlock(MultiScaleBlock):
    """Pads after the linear layer, with what that makes of zeros: its bias."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] → [N, H', W', C'], smaller where the block pools."""
        x = x.contiguous()  # once, in the first block: the patches come from a convolution, channels first
        normed = self.norm1(x)
        shortcut = x if self.dim == self.dim_out else do_pool(self.proj(normed), self.pool)
        x = shortcut + self.drop_path(self._attend(normed, shortcut.shape[1:3]))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, size: torch.Size) -> Tensor:
        windows, padded_size = self._windows(x)
        q, k, v = windows.chunk(3, dim=-1)
        if self.q_stride:
            q = do_pool(q, self.pool)
        attended = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v))
        attended = attended.transpose(1, 2).reshape(q.shape)
        pooling = self.window_size // q.shape[1]
        pooled_size = tuple(side // pooling for side in padded_size)
        attended = window_unpartition(attended, q.shape[1], pooled_size, size)
        return self.attn.proj(attended.contiguous())  # cut to size, or torch would copy the weights for each row

    def _windows(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[N, H, W, C] → [n, h, w, 3 C'] in windows, and height and width with their padding."""
        height, width = x.shape[1:3]
        below, right = -height % self.window_size, -width % self.window_size
        if not below and not right:
            windows, size = window_partition(x, self.window_size)  # C numbers are copied a token, and not 3 C'
            return self.attn.qkv(windows), size
        qkv = self.attn.qkv(x)
        padded = self.attn.qkv.bias.to(qkv.dtype).expand(len(qkv), height + below, width + right, -1).clone()
        padded[:, :height, :width] = qkv
        return window_partition(padded, self.window_size)

    def _heads(self, tokens: Tensor) -> Tensor:
        """[n, h, w, C'] → [n, heads, h · w, C' / heads]"""
        return tokens.flatten(1, 2).unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2)
