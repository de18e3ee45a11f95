import pytest
import torch

from nnunet_autosam2.architectures.bridge import Bridge, ChannelAttention, SpatialAttention


@pytest.fixture
def bridge() -> Bridge:
    torch.manual_seed(0)
    return Bridge(32, num_regions=3, embedding_size=8)


@pytest.mark.parametrize("size", [(8, 8), (20, 12), (3, 5), (1, 1)])
@pytest.mark.parametrize("channels", [32, 64])
def test_features_of_any_size_become_a_dense_prompt(size, channels):
    bridge = Bridge(channels, num_regions=2, embedding_size=8)
    assert bridge(torch.randn(3, channels, *size)).shape == (3, 2, 256, 8, 8)


def test_gradient_reaches_the_features_and_every_parameter(bridge):
    features = torch.randn(2, 32, 10, 8, requires_grad=True)
    bridge(features).square().sum().backward()
    gradients = [features.grad, *(parameter.grad for parameter in bridge.parameters())]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_starts_small_beside_sam2s_own_prompt(bridge):
    prompt = bridge(torch.randn(4, 32, 16, 16))
    assert 0.01 < prompt.std() < 0.3


def test_has_a_residual_beside_the_convolutions(bridge):
    with torch.no_grad():
        bridge.convolutions[-1].weight.zero_()
        bridge.convolutions[-1].bias.zero_()
    features = torch.randn(1, 32, 8, 8)
    expected = bridge.scale * bridge.residual(bridge.attention(features))
    torch.testing.assert_close(bridge(features), expected[:, None].expand(-1, 3, -1, -1, -1))


def test_regions_differ_by_their_embedding_alone_and_start_equal(bridge):
    features = torch.randn(2, 32, 8, 8)
    start = bridge(features)
    assert torch.equal(start[:, 0], start[:, 1])
    torch.nn.init.normal_(bridge.region_embedding)
    difference = bridge(features) - start
    torch.testing.assert_close(difference, bridge.region_embedding[:, :, None, None].expand_as(difference))


def test_slices_do_not_see_each_other(bridge):
    features = torch.randn(3, 32, 12, 12)
    torch.testing.assert_close(bridge(features)[1:2], bridge(features[1:2]), rtol=1e-4, atol=1e-6)


def test_channel_attention_weighs_whole_channels():
    torch.manual_seed(0)
    x = torch.randn(2, 32, 6, 7)
    weights = ChannelAttention(32)(x) / x
    torch.testing.assert_close(weights, weights.mean((2, 3), keepdim=True).expand_as(weights), rtol=1e-3, atol=0)
    assert weights.std(dim=1).min() > 0
    assert ((weights > 0) & (weights < 1)).all()


def test_spatial_attention_weighs_places_whatever_the_order_of_channels():
    torch.manual_seed(0)
    attention, x, order = SpatialAttention(), torch.randn(2, 32, 6, 7), torch.randperm(32)
    weights = attention(x) / x
    torch.testing.assert_close(weights, weights.mean(1, keepdim=True).expand_as(weights), rtol=1e-3, atol=0)
    assert weights[:, 0].flatten(1).std(dim=1).min() > 0
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])
