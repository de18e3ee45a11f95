"""AutoSAM2 with validation batches in which nothing is there and nothing is predicted: their pseudo Dice is NaN."""

from collections.abc import Sequence

import numpy as np

from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2


class nnUNetTrainerAutoSAM2_NothingAtAll(nnUNetTrainerAutoSAM2):
    undefined: Sequence[int] = range(1000)

    def initialize(self) -> None:
        super().initialize()
        self.logger.plot_progress_png = lambda folder: None  # nnU-Net's picture, which takes longer than an epoch

    def validation_step(self, batch: dict) -> dict:
        result = super().validation_step(batch)
        if self.current_epoch in self.undefined:
            result.update({key: np.zeros_like(result[key]) for key in ("tp_hard", "fp_hard", "fn_hard")})
        return result


class nnUNetTrainerAutoSAM2_NothingSometimes(nnUNetTrainerAutoSAM2_NothingAtAll):
    undefined = (0, 3)
