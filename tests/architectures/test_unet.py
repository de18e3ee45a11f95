import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_autosam2.architectures.backbone import resize
from nnunet_autosam2.architectures.unet import GroupNorm, ResidualUNet3d, strides_for

ISOTROPIC = ((2, 2, 2),) * 4
ANISOTROPIC = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
PLANNED_20x320x256 = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]


def make_unet(*args, **kwargs) -> ResidualUNet3d:
    torch.manual_seed(0)
    return ResidualUNet3d(*args, **kwargs)


@pytest.fixture(scope="module")
def unet() -> ResidualUNet3d:
    return make_unet(4, 4)


def test_encoder_has_the_numbers_of_the_description(unet):
    stem = unet.encoder.stem.conv
    assert (stem.in_channels, stem.out_channels, stem.kernel_size) == (4, 16, (5, 5, 5))
    skips = unet.encoder(torch.randn(1, 4, 16, 32, 48))
    assert [tuple(skip.shape[1:]) for skip in skips] == [
        (16, 16, 32, 48),
        (32, 8, 16, 24),
        (64, 4, 8, 12),
        (128, 2, 4, 6),
        (128, 1, 2, 3),
    ]


def decoded(unet: ResidualUNet3d, skips: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    x, features = skips[-1], {}
    for level in (3, 2, 1, 0):
        x = features[level] = unet.decode(level, x, skips[level])
    return features


def test_decoder_mirrors_the_encoder(unet):
    skips = unet.encoder(torch.randn(1, 4, 16, 32, 48))
    features = decoded(unet, skips)
    assert {level: tuple(x.shape[1:]) for level, x in features.items()} == {
        3: (64, *skips[3].shape[2:]),
        2: (32, *skips[2].shape[2:]),
        1: (16, *skips[1].shape[2:]),
        0: (16, *skips[0].shape[2:]),
    }


@pytest.mark.parametrize("level", range(5))
def test_every_level_of_the_encoder_reaches_the_output(unet, level):
    skips = unet.encoder(torch.randn(1, 4, 16, 16, 16))
    before = decoded(unet, skips)[0]
    skips[level] = skips[level] + 1
    assert not torch.allclose(decoded(unet, skips)[0], before)


def test_norms_are_groups_and_activations_relu(unet):
    leaves = [module for module in unet.modules() if not list(module.children())]
    kinds = (nn.Conv3d, nn.GroupNorm, nn.ReLU, nn.AvgPool3d)
    assert all(isinstance(leaf, kinds) for leaf in leaves)
    convolutions = [leaf for leaf in leaves if isinstance(leaf, nn.Conv3d)]
    heads = list(unet.decoder.seg_layers.values())
    norms = [leaf for leaf in leaves if isinstance(leaf, nn.GroupNorm)]
    assert len(norms) == len(convolutions) - len(heads)


def test_norms_keep_the_precision_of_a_gpus_autocast():
    with FakeTensorMode(), torch.device("cuda"):
        norm, volume = GroupNorm(16), torch.empty(1, 16, 4, 4, 4, dtype=torch.float16)
        torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses where there is no GPU
        try:
            normed = norm(volume)
            by_torch = nn.GroupNorm(8, 16)(volume)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert normed.dtype == torch.float16
    assert by_torch.dtype == torch.float32


def test_blocks_are_residual(unet):
    block = make_unet(4, 4).encoder.blocks[3]  # 128 → 128: the skip is the pooled input itself
    with torch.no_grad():
        block.conv2.norm.weight.zero_()
        block.conv2.norm.bias.zero_()
    x = torch.randn(1, 128, 4, 4, 4)
    torch.testing.assert_close(block(x), nn.functional.avg_pool3d(x, 2).relu())


@pytest.mark.parametrize(
    ("strides", "size", "outputs", "middle"),
    [
        (ISOTROPIC, (16, 32, 48), [(16, 32, 48), (8, 16, 24), (4, 8, 12)], (32, 4, 8, 12)),
        (ANISOTROPIC, (20, 48, 32), [(20, 48, 32), (20, 24, 16), (10, 12, 8)], (32, 10, 12, 8)),
        (((1, 1, 1),) * 4, (2, 3, 5), [(2, 3, 5)] * 4, (64, 2, 3, 5)),
    ],
    ids=["isotropic", "anisotropic", "no strides"],
)
@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 2), (4, 3)])
def test_shapes(strides, size, outputs, middle, in_channels, num_classes):
    unet = make_unet(in_channels, num_classes, strides)
    volume = torch.randn(2, in_channels, *size)
    output = unet(volume)
    assert [tuple(logits.shape) for logits in output.logits] == [(2, num_classes, *shape) for shape in outputs]
    assert tuple(output.middle_features.shape) == (2, *middle)
    assert unet.middle_channels == middle[0]
    assert [tuple(np.divide(size, stride).astype(int)) for stride in unet.strides] == outputs

    unet.deep_supervision = False
    single = unet(volume)
    assert len(single.logits) == 1
    assert torch.equal(single.logits[0], output.logits[0])


def test_stopping_at_the_middle_needs_no_fine_half():
    whole, half = make_unet(2, 3), make_unet(2, 3, full_resolution=False)
    fine = whole.load_state_dict(half.state_dict(), strict=False).missing_keys
    assert {name.split(".")[2] for name in fine} == {"0", "1"}
    volume = torch.randn(1, 2, 16, 32, 16)
    outputs = [unet(volume, full_resolution=False) for unet in (whole, half)]
    assert [len(output.logits) for output in outputs] == [1, 1]
    assert outputs[0].logits[0].shape[2:] == volume.shape[2:]
    torch.testing.assert_close(outputs[0].logits[0], outputs[1].logits[0])
    torch.testing.assert_close(outputs[0].middle_features, whole(volume).middle_features)


@pytest.mark.parametrize("full_resolution", [True, False])
def test_every_parameter_learns(full_resolution):
    unet = make_unet(2, 3, full_resolution=full_resolution)
    output = unet(torch.randn(2, 2, 16, 16, 16), full_resolution)
    sum(logits.square().sum() for logits in output.logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in unet.parameters())


def test_samples_do_not_see_each_other(unet):
    volumes = torch.randn(2, 4, 16, 16, 16)
    together = unet(volumes).logits[0]
    for i in range(2):
        torch.testing.assert_close(unet(volumes[i : i + 1]).logits[0][0], together[i], rtol=1e-4, atol=1e-5)


def test_resize_is_linear_between_voxel_centres():
    ramp = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(1, 1, 6, 2, 2)
    resized = resize(ramp, (12, 4, 2))
    expected = np.interp((np.arange(12) + 0.5) / 2 - 0.5, np.arange(6), np.arange(6))
    np.testing.assert_allclose(resized[0, 0, :, 1, 1], expected, rtol=0, atol=1e-6)


def test_strides_follow_the_plans():
    assert strides_for((20, 320, 256), PLANNED_20x320x256) == list(ANISOTROPIC)


@pytest.mark.parametrize(
    ("patch", "planned"),
    [
        ((8, 16, 16), [[1, 1, 1], [1, 2, 2]]),
        ((12, 40, 24), [[1, 1, 1], [1, 2, 2], [2, 2, 2]]),
        ((4, 8, 8), [[1, 1, 1]]),
        ((160, 192, 128), []),
        ((7, 33, 1), []),
    ],
)
def test_strides_beyond_the_plans_divide_the_patch(patch, planned):
    strides = strides_for(patch, planned)
    assert len(strides) == 4
    assert [list(stride) for stride in strides[: max(len(planned) - 1, 0)]] == planned[1:]
    total = np.prod(strides, axis=0)
    assert not (np.array(patch) % total).any()
    assert (
        make_unet(1, 2, strides)(torch.zeros(1, 1, *(patch if max(patch) < 50 else total))).logits[0].isfinite().all()
    )
