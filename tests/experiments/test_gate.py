"""The stand-in for SAM2 is asked as SAM2 is, beside a UNet that trains alone."""

import pytest
import torch

from experiments import gate
from nnunet_autosam2.config import AutoSAM2Config

CONFIG = AutoSAM2Config(region_based=True)


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_trains_and_predicts(closed):
    cases = gate.make_phantoms(1)
    start = gate.train({}, cases, CONFIG, iterations=1, seed=0)[0] if closed else None
    arms = {
        (fusion, "truth"): (gate.perfect, CONFIG.updated({"fusion": fusion}))
        for fusion in ("fixed", "gated", "convolutional")
    }
    alone, hybrids = gate.train(arms, cases, CONFIG, 2, 0, start)
    without, predictions = gate.predict(alone, hybrids, cases)
    assert without[0].foreground.shape == (3, *gate.PHANTOM_SIZE)
    assert predictions.keys() == arms.keys()
    for hybrid in hybrids.values():
        parameters = list(hybrid.fusion.parameters())
        assert bool(parameters) == hybrid.config.has_gate
        assert any(parameter.grad.any() for parameter in parameters) == hybrid.config.has_gate
    for arm in arms:
        (prediction,) = predictions[arm]
        assert prediction.processed.any()
        assert gate.dice([prediction], cases, [prediction]).mean() > gate.dice(without, cases, [prediction]).mean()


def test_the_unet_is_the_same_without_hybrids():
    cases = gate.make_phantoms(1)
    arms = {("convolutional", "noise"): (gate.white_noise, CONFIG.updated({"fusion": "convolutional"}))}
    beside, _ = gate.train(arms, cases, CONFIG, iterations=2, seed=0)
    alone, _ = gate.train({}, cases, CONFIG, iterations=2, seed=0)
    ours, theirs = beside.state_dict(), alone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
