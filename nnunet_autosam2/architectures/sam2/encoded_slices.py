"""Embeddings of slices that come again, as those do that neighbouring tiles of a volume share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nnunet_autosam2.architectures.masks import ImageEmbeddings

NUM_HASHES = 2


class EncodedSlices:
    """Calls an image encoder for those slices alone whose embeddings it does not have.

    Slices are told apart by their fingerprints. It is right as long as the encoder's weights stay as they are.

    Args:
        most: slices whose embeddings are kept, the latest ones.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen = 0
        self.kept: tuple[Tensor, ...] = ()
        """Fingerprints and embeddings of the latest slices, each place used again in its turn"""

    def __call__(self, encode: Callable[[Tensor], ImageEmbeddings], slices: Tensor) -> ImageEmbeddings:
        """[N, C, H, W] → embeddings of the N slices."""
        if len(slices) > self.most:
            return encode(slices)
        if not self.kept:
            own, embeddings = fingerprints(slices), encode(slices)
            self.kept = tuple(each.new_empty(self.most, *each.shape[1:]) for each in (own, *embeddings))
            self._keep(own, *embeddings)
            return embeddings
        own, same = self._compared(slices)
        new = (~same.any(1)).nonzero()[:, 0]
        embeddings = ImageEmbeddings(*(each[same.int().argmax(1)] for each in self.kept[1:]))
        if len(new):
            encoded = encode(slices[new])
            for every, each in zip(embeddings, encoded, strict=True):
                every[new] = each
            self._keep(own[new], *encoded)
        return embeddings

    def know(self, slices: Tensor) -> Tensor:
        """[N, C, H, W] → [N], whether their embeddings are there."""
        if not self.kept:
            return torch.zeros(len(slices), dtype=torch.bool, device=slices.device)
        return self._compared(slices)[1].any(1)

    def _compared(self, slices: Tensor) -> tuple[Tensor, Tensor]:
        """Fingerprints of N slices, and [N, M], which of those that are kept each is."""
        own = fingerprints(slices)
        return own, (own[:, None] == self.kept[0][: self.seen]).all(2)

    def _keep(self, *of_slices: Tensor) -> None:
        count, device = len(of_slices[0]), of_slices[0].device
        at = (self.seen + torch.arange(count, device=device)) % self.most
        for kept, each in zip(self.kept, of_slices, strict=True):
            kept[at] = each
        self.seen += count


def fingerprints(slices: Tensor) -> Tensor:
    """[N, ...] → [N, NUM_HASHES], equal for equal slices, and for others once in some 2^64 pairs.

    Multilinear hashes (Lemire and Kaser, The Computer Journal 57, 2014) of the numbers' bits, modulo 2^64: the sum is
    the same in any order, and so on any device.
    """
    bits = slices.float().contiguous().flatten(1).view(torch.int32).long()
    factors = torch.randint(
        -(2**63), 2**63 - 1, (NUM_HASHES, bits.shape[1]), generator=torch.Generator().manual_seed(0)
    ).to(bits.device)
    return torch.stack([(bits * each).sum(1) for each in factors], dim=1)
