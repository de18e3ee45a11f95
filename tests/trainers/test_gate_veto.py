"""What a training has reached, by the table of its folder, and the gates that are closed for it."""

from pathlib import Path

import numpy as np
import pytest

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.trainers.diagnostics import HybridProgress
from nnunet_autosam2.trainers.gate_veto import GateVerdict, close_gates, open_gates

pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
REGIONS = ["whole tumor", "tumor core"]
NAN = float("nan")


@pytest.fixture
def make_progress(tmp_path: Path):
    """HybridProgress with the rows (Dice of the UNet, of the fusion), each of both regions."""

    def make(*epochs: tuple[list[float], list[float]]) -> HybridProgress:
        progress = HybridProgress(tmp_path, REGIONS)
        progress.rows = [[epoch, *unet, 0.1, 0.1, *fused, 0.5, 0.5] for epoch, (unet, fused) in enumerate(epochs)]
        return progress

    return make


def verdict(unet: list[float], hybrid: list[float]) -> GateVerdict:
    return GateVerdict(REGIONS, unet, hybrid)


def make_network(region_based: bool = True, **parameters) -> AutoSAM2:
    small = {"sam2_image_size": 64, "sam2_checkpoint": "random"}
    return AutoSAM2(2 if region_based else 3, 3, region_based=region_based, **small, **parameters)


def test_it_is_the_ema_of_each_region(make_progress):
    epochs = [([0.1, 0.5], [0.2, 0.4]), ([0.5, 0.6], [0.6, 0.7]), ([0.6, 0.6], [0.5, 0.9])]
    reached = GateVerdict.after(make_progress(*epochs), 3)
    assert reached.regions == REGIONS
    assert reached.unet == pytest.approx([0.81 * 0.1 + 0.09 * 0.5 + 0.1 * 0.6, 0.81 * 0.5 + 0.09 * 0.6 + 0.1 * 0.6])
    assert reached.hybrid == pytest.approx([0.81 * 0.2 + 0.09 * 0.6 + 0.1 * 0.5, 0.81 * 0.4 + 0.09 * 0.7 + 0.1 * 0.9])
    assert reached.harmed == [False, True]


def test_epochs_after_the_weights_do_not_count(make_progress):
    progress = make_progress(([0.5, 0.5], [0.6, 0.4]), ([0.5, 0.5], [0.0, 1.0]))
    assert GateVerdict.after(progress, 1).harmed == [False, True]
    assert GateVerdict.after(progress, 2).hybrid == pytest.approx([0.54, 0.46])


def test_epochs_without_one_of_the_two_values_do_not_count(make_progress):
    epochs = [([0.5, NAN], [0.4, 0.0]), ([NAN, 0.5], [1.0, NAN]), ([0.5, NAN], [0.4, NAN])]
    reached = GateVerdict.after(make_progress(*epochs), 3)
    assert (reached.unet[0], reached.hybrid[0]) == (0.5, 0.4)
    assert np.isnan([reached.unet[1], reached.hybrid[1]]).all()
    assert reached.harmed == [True, False]


def test_equal_predictions_are_no_harm_though_nnunet_rounds_the_dice(make_progress):
    unet = [1 / 3, 2 / 3]
    rounded = [float(np.nextafter(np.float32(value), np.float32(0))) for value in unet]
    assert rounded[0] < unet[0]
    assert GateVerdict.after(make_progress((unet, rounded)), 1).harmed == [False, False]


def test_no_epoch_tells_nothing_and_leaves_the_gates_as_they_are(make_progress):
    reached, network = GateVerdict.after(make_progress(), 3), make_network()
    network.fusion.veto([False, True])
    assert close_gates(network, reached) == [
        f"EMA of the pseudo Dice of {name}: UNet alone nan, hybrid nan." for name in REGIONS
    ]
    assert network.fusion.vetoed.tolist() == [False, True]


@pytest.mark.parametrize("fusion", ["gated", "convolutional"])
def test_gates_close_where_the_hybrid_is_below_its_unet_and_open_as_the_training_goes_on(fusion):
    network = make_network(fusion=fusion)
    assert close_gates(network, verdict([0.5, 0.6], [0.7, 0.55])) == [
        "EMA of the pseudo Dice of whole tumor: UNet alone 0.5000, hybrid 0.7000.",
        "EMA of the pseudo Dice of tumor core: UNet alone 0.6000, hybrid 0.5500.",
        "Closed gates: tumor core, where the hybrid was below its UNet alone.",
    ]
    assert network.fusion.vetoed.tolist() == [False, True]
    assert open_gates(network)
    assert not network.fusion.vetoed.any()
    assert not open_gates(network)


def test_a_gate_opens_again_where_the_hybrid_has_caught_up():
    network = make_network()
    close_gates(network, verdict([0.5, 0.6], [0.4, 0.5]))
    assert close_gates(network, verdict([0.5, 0.6], [0.6, 0.6]))[-1] == "Closed gates: none."
    assert not network.fusion.vetoed.any()


@pytest.mark.parametrize(
    ("hybrid", "vetoed"),
    [([0.7, 0.7], [False] * 3), ([0.7, 0.1], [False, False, True]), ([0.1, 0.1], [True] * 3)],
    ids=["none", "one", "both"],
)
def test_a_background_goes_with_the_last_class_of_the_foreground(hybrid, vetoed):
    network = make_network(region_based=False)
    close_gates(network, verdict([0.5, 0.5], hybrid))
    assert network.fusion.vetoed.tolist() == vetoed


def test_an_option_leaves_it_out():
    network = make_network(gate_veto=False)
    network.fusion.veto([True, True])  # as a checkpoint from before that option may have it
    last = close_gates(network, verdict([0.5, 0.5], [0.1, 0.1]))[-1]
    assert last == "Closed gates: none, since gate_veto is false."
    assert not network.fusion.vetoed.any()


def test_a_fixed_blend_has_no_gate():
    network = make_network(fusion="fixed")
    lines = close_gates(network, verdict([0.5, 0.5], [0.1, 0.1]))
    assert [line[:25] for line in lines] == ["EMA of the pseudo Dice of"] * 2
    assert not open_gates(network)
