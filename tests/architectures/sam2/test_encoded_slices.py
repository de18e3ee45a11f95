from functools import partial

import pytest
import torch
from torch import Tensor

from nnunet_autosam2.architectures.masks import ImageEmbeddings
from nnunet_autosam2.architectures.sam2.encoded_slices import EncodedSlices, fingerprints


def make_slices(count: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 6, 8, generator=torch.Generator().manual_seed(seed))


def encode(slices: Tensor, calls: list[int]) -> ImageEmbeddings:
    calls.append(len(slices))
    return ImageEmbeddings(slices.mean(1), slices.square(), slices.flatten(1).cumsum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_what_has_been_encoded_is_not_encoded_again(dtype):
    calls: list[int] = []
    encoded_before, slices = EncodedSlices(most=8), make_slices(9).to(dtype)
    for rows in ([0, 1, 2], [1, 2, 3], [3, 0], [4, 5, 6, 7, 8], [2, 8], [0, 5, 2]):
        given = slices[rows]
        for ours, expected in zip(encoded_before(partial(encode, calls=calls), given), encode(given, []), strict=True):
            assert torch.equal(ours, expected)
    assert calls == [3, 1, 5, 1], "the eight latest are kept: 0 has made room for 8, and 1 for 0"


@torch.inference_mode()
def test_a_slice_without_content_is_encoded_like_any():
    calls: list[int] = []
    encoded_before = EncodedSlices(most=8)
    for given in (make_slices(2), torch.zeros_like(make_slices(2)), torch.zeros_like(make_slices(1))):
        embeddings = encoded_before(partial(encode, calls=calls), given)
        assert torch.equal(embeddings.fine, given.square())
    assert calls == [2, 2]


@torch.inference_mode()
def test_more_slices_than_are_kept_are_all_encoded():
    calls: list[int] = []
    encoded_before, slices = EncodedSlices(most=3), make_slices()
    for _ in range(2):
        assert torch.equal(encoded_before(partial(encode, calls=calls), slices).fine, slices.square())
    assert calls == [5, 5]


def test_fingerprints_are_of_the_content_alone():
    slices = make_slices(2000)
    own = fingerprints(slices)
    assert torch.equal(fingerprints(slices[7:9]), own[7:9])
    assert torch.equal(fingerprints(slices.transpose(2, 3).contiguous().transpose(2, 3)), own)
    assert len(own.unique(dim=0)) == len(own)
    assert len(own[:, 0].unique()) == len(own[:, 1].unique()) == len(own)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.flip(1), lambda x: x.roll(1, -1), lambda x: -x],
    ids=["mirrored", "upside down", "channels exchanged", "shifted", "negative"],
)
def test_other_slices_have_other_fingerprints(change):
    slices = make_slices()
    assert not (fingerprints(slices) == fingerprints(change(slices))).any()
    almost = slices.clone()
    almost[:, 1, 3, 4] = almost[:, 1, 3, 4].nextafter(torch.tensor(2.0))
    assert not (fingerprints(slices) == fingerprints(almost)).any()
