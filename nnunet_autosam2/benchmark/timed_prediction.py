"""Predicts cases one after the other, as nnUNetv2_predict does by default, and writes down what each one takes.

Usage: python -m nnunet_autosam2.benchmark.timed_prediction RECORD MODEL_FOLDER FOLD DEVICE CASES
CASES is JSON: {"case": ["image of channel 0", …]}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_autosam2.benchmark.kept import PredictionCost
from nnunet_autosam2.benchmark.measured import peak_memory
from nnunet_autosam2.benchmark.results import Parameters
from nnunet_autosam2.errors import exit_on_user_error
from nnunet_autosam2.support.staging import replace_file


def main() -> None:
    record, folder, fold, device, cases = sys.argv[1:]
    predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(folder, (int(fold),), "checkpoint_final.pth")
    seconds = {}
    with TemporaryDirectory() as output:
        for case, images in json.loads(cases).items():
            start = time.perf_counter()
            predictor.predict_from_files_sequential([images], [str(Path(output, case))])
            seconds[case] = time.perf_counter() - start
    parameters = list(predictor.network.parameters())
    measured = PredictionCost(
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
        parameters=Parameters(
            all=sum(parameter.numel() for parameter in parameters),
            trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        ),
    )
    with exit_on_user_error():
        replace_file(Path(record), measured.model_dump_json())


if __name__ == "__main__":
    main()
