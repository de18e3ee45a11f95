"""nnU-Net's sliding window, of which SAM2's image encoder sees a slice once that several tiles share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_autosam2.trainers.patching import predicting_autosam2_of, put_around

PREDICT_TILES = "_internal_predict_sliding_window_return_logits"


def encode_shared_slices_once() -> None:
    """Makes every nnUNetPredictor predict volumes with an AutoSAM2 network so; all else is predicted as before."""
    slower = "predictions encode slices anew that several tiles share, and take longer"
    put_around(nnUNetPredictor, PREDICT_TILES, _with_slices_encoded_once, slower)


def _with_slices_encoded_once(predict_tiles: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def predict(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        network = predicting_autosam2_of(self.network)
        if network is None or network.sam2_branch is None:
            return predict_tiles(self, *args, **kwargs)
        with network.sam2_branch.encodes_each_slice_once():
            return predict_tiles(self, *args, **kwargs)

    return predict
