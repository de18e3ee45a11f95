"""The stand-in for SAM2 is asked as SAM2 is."""

import pytest

from experiments import gate
from nnunet_autosam2.config import AutoSAM2Config


@pytest.mark.parametrize("masks", [None, gate.perfect], ids=["without SAM2", "truth"])
def test_trains_and_predicts(masks):
    cases = gate.make_phantoms(1)
    network = gate.train(masks, cases, AutoSAM2Config(region_based=True), iterations=1, seed=0)
    (prediction,) = gate.predict(network, cases)
    assert prediction.foreground.shape == (3, *gate.PHANTOM_SIZE)
    assert bool(network.processed.any()) == (masks is not None)
