from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from nnunet_autosam2.architectures.encoded_slices import EncodedSlices


class Pair(NamedTuple):
    greatest: Tensor
    double: Tensor


class Encoder:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, slices: Tensor) -> Pair:
        self.seen.append(len(slices))
        return Pair(slices.flatten(1).amax(1), 2 * slices)


@pytest.fixture
def encode() -> Encoder:
    return Encoder()


def make_slices(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def check(embeddings: Pair, slices: Tensor) -> None:
    for got, expected in zip(embeddings, Encoder()(slices), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_what_was_seen_is_not_encoded_again_in_any_order(encode):
    encoded, slices = EncodedSlices(20), make_slices(6)
    for order in ([0, 1, 2], [2, 1, 0], [5, 1, 4, 0], [3, 5, 2, 4], [2]):
        check(encoded(encode, slices[order], 0), slices[order])
    assert encode.seen == [3, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_other_bit_is_another_slice(encode, dtype):
    encoded, slices = EncodedSlices(20), make_slices(1).to(dtype)
    encoded(encode, slices, 0)
    other = slices.clone()
    other[0, 1, 2, 3] = torch.nextafter(slices[0, 1, 2, 3].float(), torch.tensor(9.0)) if dtype == torch.float32 else 9
    check(encoded(encode, other, 0), other)
    assert encode.seen == [1, 1]


def test_equal_keys_are_not_taken_for_equal_slices(encode, monkeypatch):
    keys = "nnunet_autosam2.architectures.encoded_slices._keys"
    monkeypatch.setattr(keys, lambda slices: torch.zeros(len(slices), dtype=torch.long))
    encoded, slices = EncodedSlices(20), make_slices(4)
    for order in ([0, 1], [2, 1], [1, 0], [3]):
        check(encoded(encode, slices[order], 0), slices[order])


def test_another_version_forgets(encode):
    encoded, slices = EncodedSlices(20), make_slices(3)
    for version in (0, 0, 1, 0):
        encoded(encode, slices, version)
    assert encode.seen == [3, 3, 3]


def test_the_oldest_are_forgotten(encode):
    encoded = EncodedSlices(5)
    for seed in (0, 1, 0, 1, 2, 2, 1, 0):  # 2 slices each
        check(encoded(encode, make_slices(2, seed), 0), make_slices(2, seed))
    assert encode.seen == [2, 2, 2, 2]
    check(encoded(encode, make_slices(9, 3), 0), make_slices(9, 3))
    check(encoded(encode, make_slices(9, 3), 0), make_slices(9, 3))
    assert encode.seen[-2:] == [9, 9]


def test_slices_of_another_size_and_none_at_all(encode):
    encoded = EncodedSlices(20)
    none = make_slices(2)[:0]
    for slices in (none, make_slices(2), none, make_slices(2)[..., :3], make_slices(2)):
        check(encoded(encode, slices, 0), slices)
