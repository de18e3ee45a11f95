import csv
import os

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn

from nnunet_autosam2.architectures.fusion import Fused
from nnunet_autosam2.architectures.outputs import AutoSAM2Output
from nnunet_autosam2.trainers.diagnostics import PATIENCE, HybridProgress, confusion_counts

SHAPE = (2, 3, 4, 5, 6)
CLASSES = ["whole tumor", "tumor core", "enhancing tumor"]


@pytest.mark.parametrize("region_based", [True, False])
def test_counts_are_nnunets(region_based):
    torch.manual_seed(0)
    unet, sam2 = torch.randn(SHAPE), torch.randn(SHAPE)
    if region_based:
        truth = (torch.rand(SHAPE) > 0.5).float()
    else:
        truth = torch.zeros(SHAPE).scatter_(1, torch.randint(0, 3, (2, 1, 4, 5, 6)), 1)
    counted = (torch.rand(2, 1, 4, 5, 6) > 0.2).float()
    reached = torch.tensor([True, True, True, False]).view(1, 1, 4, 1, 1).expand(2, 1, 4, 1, 1)
    weight = torch.where(reached, torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1, 1), 0.9).expand(SHAPE)
    output = AutoSAM2Output(unet, (unet,), None, Fused(unet, unet, sam2, weight, reached))
    counts = confusion_counts(output, truth, counted, region_based)
    assert counts["SAM2's weight"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    for name, logits in (("UNet", unet), ("SAM2", sam2)):
        hard = (logits.sigmoid() > 0.5).long() if region_based else logits.argmax(1, keepdim=True)
        if not region_based:
            hard = torch.zeros(SHAPE).scatter_(1, hard, 1)
        expected = get_tp_fp_fn_tn(hard, truth, axes=[0, 2, 3, 4], mask=counted)[:3]
        np.testing.assert_array_equal(counts[name], torch.stack(expected).numpy())


def test_nothing_is_counted_where_unet_or_sam2_is_missing():
    logits = torch.zeros(SHAPE)
    assert confusion_counts(AutoSAM2Output(logits, (logits,), None), logits, logits[:, :1], True) == {}


def means(unet: float, sam2: float) -> dict[str, np.ndarray]:
    """With a Dice of `unet` and `sam2` in each class."""
    halves = {half: np.array([[d] * 3, [1 - d] * 3, [1 - d] * 3]) for half, d in (("UNet", unet), ("SAM2", sam2))}
    return {**halves, "SAM2's weight": np.array([0.5, 0.4, 0.3])}


def test_table_and_picture_go_on_after_a_resume(tmp_path):
    progress = HybridProgress(tmp_path, CLASSES)
    for epoch in range(3):
        lines = list(progress.add(epoch, means(0.5, 0.25), [0.6, 0.7, 0.8]))
        assert lines == [
            "Pseudo dice of UNet alone [0.5, 0.5, 0.5]",
            "Pseudo dice of SAM2 alone [0.25, 0.25, 0.25]",
            "SAM2's weight [0.5, 0.4, 0.3]",
        ]
    resumed = HybridProgress(tmp_path, CLASSES)
    list(resumed.add(1, means(0.9, 0.8), [1.0, 1.0, 1.0]))
    with (tmp_path / "autosam2_progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == [0, 1]
    assert float(rows[1]["UNet tumor core"]) == pytest.approx(0.9)
    assert float(rows[0]["fused enhancing tumor"]) == pytest.approx(0.8)
    assert float(rows[0]["SAM2's weight tumor core"]) == pytest.approx(0.4)
    assert (tmp_path / "autosam2_progress.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"autosam2_progress.csv", "autosam2_progress.png"}


def test_labels_leave_the_background_out(tmp_path):
    progress = HybridProgress(tmp_path, CLASSES[:2])
    lines = list(progress.add(0, means(0.5, 0.25), [0.6, 0.7]))
    assert lines[-1] == "SAM2's weight [0.4, 0.3]"


@pytest.fixture
def without_pictures(monkeypatch):
    """Of twenty epochs"""
    monkeypatch.setattr(HybridProgress, "_draw", lambda progress: None)


@pytest.mark.usefixtures("without_pictures")
def test_warning_after_ten_epochs_in_a_row_below_the_unet(tmp_path):
    progress = HybridProgress(tmp_path, CLASSES)
    warned = []
    for epoch in range(2 * PATIENCE + 1):
        fused = 0.9 if epoch == 3 else 0.4
        warned.append(any(line.startswith("WARNING") for line in progress.add(epoch, means(0.5, 0.2), [fused] * 3)))
    assert warned.index(True) == 3 + PATIENCE
    assert all(warned[3 + PATIENCE :])


def test_a_class_that_is_nowhere_has_no_part_in_the_mean(tmp_path):
    progress = HybridProgress(tmp_path, CLASSES)
    absent = means(0.5, 0.5)
    absent["UNet"][:, 0] = absent["SAM2"][:, :] = 0
    list(progress.add(0, absent, [float("nan"), 0.4, 0.5]))
    assert progress.mean_dice("UNet").tolist() == [0.5]
    assert np.isnan(progress.mean_dice("SAM2")).all()
    assert progress.mean_dice("fused").tolist() == [0.45]
    assert not progress.fusion_harms


@pytest.mark.usefixtures("without_pictures")
def test_epochs_and_classes_that_say_nothing_are_no_evidence_for_either(tmp_path):
    """In every third epoch nothing is there; one class is in the fusion alone, as an invention."""
    progress, nan = HybridProgress(tmp_path, CLASSES), float("nan")
    warned = []
    for epoch in range(2 * PATIENCE):
        values = means(0.5, 0.2)
        values["UNet"][:, 0] = 0
        if epoch % 3 == 0:
            values["UNet"][:] = 0
        fused = [nan] * 3 if epoch % 3 == 0 else [1.0, 0.4, 0.4]
        warned.append(any(line.startswith("WARNING") for line in progress.add(epoch, values, fused)))
    assert warned.index(True) == 14, "the tenth epoch that tells"


@pytest.mark.parametrize(
    "content", [b"", b"epoch\n0", b"a,b\n0,x", b"\xff\xfe", b"a\n0,0,0,0,0,0,0,0,0,0,0,0,0,0", b"a\n\0"]
)
def test_a_damaged_table_does_not_stop_a_resumed_training(tmp_path, content):
    (tmp_path / "autosam2_progress.csv").write_bytes(content)
    assert list(HybridProgress(tmp_path, CLASSES).add(7, means(0.5, 0.25), [0.6, 0.7, 0.8]))
    with (tmp_path / "autosam2_progress.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["7"]
    kept = [path.read_bytes() for path in tmp_path.glob("*.damaged")]
    assert kept == ([content] if content else [])  # an empty table has no epoch to lose


def test_the_picture_is_replaced_once_it_is_whole(tmp_path):
    progress = HybridProgress(tmp_path, CLASSES)
    list(progress.add(0, means(0.5, 0.25), [0.6, 0.7, 0.8]))
    picture = tmp_path / "autosam2_progress.png"
    os.link(picture, tmp_path / "before.png")
    before = picture.read_bytes()
    list(progress.add(1, means(0.9, 0.8), [0.6, 0.7, 0.8]))
    assert (tmp_path / "before.png").read_bytes() == before != picture.read_bytes()
    assert before[:4] == picture.read_bytes()[:4] == b"\x89PNG"
