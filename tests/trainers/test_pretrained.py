"""Networks and encoders from elsewhere as the start of the planned network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.run import run_training
from torch import Tensor, nn

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import WeightsError
from nnunet_autosam2.trainers.pretrained import load_pretrained, take_pretrained_weights

CHANNELS, CLASSES = 2, 3


def make_planned(kind: type[nn.Module] = PlainConvUNet, channels: int = CHANNELS, classes: int = CLASSES) -> nn.Module:
    depth = "n_conv_per_stage" if kind is PlainConvUNet else "n_blocks_per_stage"
    return kind(
        channels, 3, [4, 8, 8], nn.Conv3d, 3, [1, 2, 2], num_classes=classes, n_conv_per_stage_decoder=1,
        norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, **{depth: 1},
    )  # fmt: skip


def make_hybrid(kind: type[nn.Module] = PlainConvUNet, **parameters) -> AutoSAM2:
    config = AutoSAM2Config(backbone="plans", sam2_image_size=64, slice_fraction=0, **parameters)
    return AutoSAM2(CLASSES, CHANNELS, config, planned=make_planned(kind))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Mapping[str, object]], Path]:
    def write(weights: Mapping[str, object]) -> Path:
        torch.save({"network_weights": weights}, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def state(kind: type[nn.Module] = PlainConvUNet, **sizes: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return make_planned(kind, **sizes).state_dict()


def encoder_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}


@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_an_encoder_is_taken_and_nothing_else(kind, prefix: str, write):
    network, encoder = make_hybrid(kind), encoder_of(state(kind))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = write({prefix + name: tensor for name, tensor in encoder.items()})
    assert load_pretrained(network, path, "x") == f"The backbone's encoder starts from {path}."
    for name, tensor in network.state_dict().items():
        inner = name.removeprefix("unet.network.").removeprefix("decoder.")
        assert torch.equal(tensor, encoder.get(inner, before[name])), name
    assert not network.state_was_loaded  # SAM2's weights are still to come


def test_the_decoder_of_other_labels_is_taken_without_its_segmentation_layers(write):
    network, weights = make_hybrid(), state(classes=CLASSES + 2)
    path = write(weights)
    assert load_pretrained(network, path, "x") == f"The backbone's encoder and decoder start from {path}."
    for name, tensor in network.unet.network.state_dict().items():
        assert (".seg_layers." in name) != torch.equal(tensor, weights[name]), name


def test_an_encoder_of_one_channel_answers_the_mean_of_the_channels(write):
    network, encoder = make_hybrid(), make_planned(channels=1).encoder.eval()
    load_pretrained(network, write({f"encoder.{name}": x for name, x in encoder.state_dict().items()}), "x")
    volume = torch.randn(1, CHANNELS, 8, 8, 8)
    with torch.no_grad():
        expected, found = encoder(volume.mean(1, keepdim=True)), network.unet.network.eval().encoder(volume)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("encoder.stages.1.0.convs.0.conv.weight"), "1 missing: encoder.stages.1"),
        (lambda weights: weights.update({"encoder.stages.0.0.convs.0.norm.bias": torch.ones(9)}), "of another shape"),
        (lambda weights: weights["encoder.stages.2.0.convs.0.norm.bias"].fill_(torch.nan), "2 not finite"),
        (lambda weights: weights.clear(), "does not fit the encoder of the plans, PlainConvUNet"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(write, change: Callable, message: str):
    network, weights = make_hybrid(), state()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    change(weights)
    with pytest.raises(WeightsError, match=message) as error:
        load_pretrained(network, write(weights), "encoder_checkpoint = weights.pth")
    assert str(error.value).startswith("encoder_checkpoint = weights.pth does not fit the encoder of the plans")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"network_weights": [1]}, [1]])
def test_another_layout_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"weights\.pth is refused: it has no network_weights.*nnU-Net's layout"):
        load_pretrained(make_hybrid(), tmp_path / "weights.pth", "x")


def test_autosam2s_own_unet_has_no_such_encoder(write):
    network = AutoSAM2(CLASSES, CHANNELS, AutoSAM2Config(slice_fraction=0))
    with pytest.raises(WeightsError, match="set backbone = plans, as nnUNetTrainerAutoSAM2_Plans does"):
        load_pretrained(network, write(state()), "x")


def test_a_transformer_is_no_encoder_of_the_plans(write):
    primus = Primus(CHANNELS, 24, (8, 8, 8), CLASSES, 1, 2, input_shape=(16, 16, 16))
    with pytest.raises(WeightsError, match="does not fit the encoder of the plans"):
        load_pretrained(make_hybrid(), write(primus.state_dict()), "x")


class TestNNUNetsOption:
    """`-pretrained_weights`, by the function that nnU-Net's command calls."""

    def load(self, network: nn.Module, path: Path) -> None:
        take_pretrained_weights()
        run_training.load_pretrained_weights(network, str(path), verbose=True)

    def test_takes_an_encoder_for_a_hybrid(self, write, capsys):
        network, encoder = make_hybrid(), encoder_of(state())
        self.load(network, write(encoder))
        assert "The backbone's encoder starts from" in capsys.readouterr().out
        own = network.unet.network.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in encoder.items())

    def test_takes_a_hybrid_as_nnunet_does(self, write):
        network, other = make_hybrid(), make_hybrid()
        self.load(network, write(other.state_dict()))
        for name, tensor in network.state_dict().items():
            assert (".seg_layers." in name) != torch.equal(tensor, other.state_dict()[name]), name
        assert network.state_was_loaded

    def test_leaves_other_networks_to_nnunet(self, write):
        network, weights = make_planned(), state()
        self.load(network, write(weights))
        own = network.state_dict()
        assert all(torch.equal(own[name], weights[name]) for name in own if ".seg_layers." not in name)
        with pytest.raises(AssertionError, match="is missing in the pretrained model weights"):
            self.load(make_planned(), write(encoder_of(weights)))

    def test_refuses_in_one_line(self, write):
        hybrid = {f"unet.network.{name}": tensor for name, tensor in encoder_of(state()).items()}
        started = make_hybrid(backbone_checkpoint="auto")
        for network, weights, message in (
            (make_hybrid(), hybrid, "does not fit: Key unet.network.decoder"),
            (started, encoder_of(state()), "are two starts for one backbone"),
        ):
            path = write(weights)
            with pytest.raises(SystemExit) as stopped:
                self.load(network, path)
            assert str(stopped.value).startswith(f"Error: -pretrained_weights {path} ")
            assert message in str(stopped.value)
            assert "\n" not in str(stopped.value)
