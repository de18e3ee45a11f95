from __future__ import annotations

import gc
import logging
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_autosam2.errors import ConfigurationError, DatasetError
from nnunet_autosam2.evaluation import scoring
from nnunet_autosam2.evaluation.numbering import NUMBERINGS
from nnunet_autosam2.evaluation.pairs import Pair
from nnunet_autosam2.evaluation.scoring import evaluate, evaluate_variants


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(file))


def without_enhancing(pair: Pair, voxels: np.ndarray, volume: float) -> list[np.ndarray]:
    assert volume == pytest.approx(np.prod(sitk.ReadImage(pair.truth).GetSpacing()))
    return [voxels, np.minimum(voxels, 2), voxels.copy()]


def test_a_case_leaves_no_garbage_behind(pairs: list[Pair]):
    """It was 5 MB a case of BraTS in every process, hours of which are a release."""
    score = partial(scoring._score, variants=scoring._as_it_is, challenge="gli", numbering=NUMBERINGS["nnunet"])
    score(pairs[0])
    gc.disable()
    try:
        gc.collect()
        score(pairs[0])
        assert gc.collect() < 200
    finally:
        gc.enable()


def test_several_predictions_of_a_case(pairs: list[Pair], tmp_path: Path):
    scores = evaluate_variants(pairs, without_enhancing, "gli", NUMBERINGS["nnunet"], 2, "both")
    assert {pair.case: first for pair, (first, _, _) in zip(pairs, scores, strict=True)} == evaluate(pairs)
    assert all(first == third for first, _, third in scores)
    changed = []
    for pair in pairs:
        image = sitk.ReadImage(pair.prediction)
        without = sitk.GetImageFromArray(np.minimum(read(pair.prediction), 2))
        without.CopyInformation(image)
        changed.append(pair._replace(prediction=tmp_path / f"{pair.case}.nii.gz"))
        sitk.WriteImage(without, changed[-1].prediction)
    assert [second for _, second, _ in scores] == list(evaluate(changed).values())
    assert evaluate_variants([], without_enhancing, "gli", NUMBERINGS["nnunet"], 2, "none") == []


def test_a_spacing_that_the_package_ignores_is_said(pairs: list[Pair], caplog: pytest.LogCaptureFixture):
    (pair,) = [pair for pair in pairs if pair.case.startswith("anisotropic")]
    with caplog.at_level(logging.WARNING):
        evaluate([pair], num_processes=1)
    assert "1 of 1 cases have a spacing other than 1 mm" in caplog.text


def test_every_problem_is_a_line_that_names_the_file(pairs: list[Pair], tmp_path: Path):
    names = ["unknown", "damaged", "grid", "shape", "text"]
    copies = [Pair(name, tmp_path / f"{name}.nii.gz", pairs[0].truth) for name in names]
    unknown, damaged, grid, shape, text = (pair.prediction for pair in copies)
    image = sitk.ReadImage(pairs[0].prediction)
    sitk.WriteImage(image + 5, unknown)
    shutil.copy(pairs[0].prediction, damaged)
    damaged.write_bytes(damaged.read_bytes()[:-60])
    sitk.WriteImage(image[:, :, 1:], shape)
    image.SetSpacing((1.0, 1.0, 1.5))
    sitk.WriteImage(image, grid)
    text.write_text("no image")
    with pytest.raises(DatasetError) as caught:
        evaluate(copies)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(f"{unknown} has the labels 5, 6, 7, 8: expected 0, 1, 2, 3.")
    assert lines[1].startswith(f"{damaged} cannot be read as NIfTI")
    assert lines[2].startswith(f"{grid} is not on the grid of {pairs[0].truth}: spacing (1.0, 1.0, 1.5) and not (1.0")
    assert lines[3].startswith(f"{shape} is not on the grid of {pairs[0].truth}: shape (34, 30, 25) and not (34, 30")
    assert lines[4].startswith(f"{text} cannot be read as NIfTI")


def test_impossible_challenge(pairs: list[Pair]):
    with pytest.raises(ConfigurationError, match="MenRT does not score WT, TC, ET"):
        evaluate(pairs, "MenRT")
