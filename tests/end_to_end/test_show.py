"""`autosam2 show` on phantom cases: which pictures there are, what is in them, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.image import imread
from scipy import ndimage

from nnunet_autosam2.architectures.prompts import PART_REACH
from nnunet_autosam2.cli.main import main

pytestmark = pytest.mark.end_to_end
CASE = "phantom_001"
SELECTED = 4  # 0.15 of the 24 slices of a patch
MARGIN = 0.12  # of the picture's height, for the title


def show(workspace, *arguments, expected: int = 0) -> str:
    """In this process, which has imported everything already."""
    result = CliRunner().invoke(main, ["show", *map(str, arguments)], env=workspace.variables)
    assert result.exit_code == expected, result.output
    return result.output


def pictures(folder: Path) -> dict[int, np.ndarray]:
    """Number of the slice → [H, W, 4]."""
    return {int(path.stem.removeprefix(f"{CASE}_slice_")): imread(path) for path in sorted(folder.iterdir())}


def shape(pictures: dict[int, np.ndarray]) -> tuple[int, ...]:
    (only,) = {picture.shape for picture in pictures.values()}
    return only


@pytest.fixture(scope="module")
def case(planned) -> Path:
    return planned.root / "raw" / "Dataset900_Phantom" / "imagesTr" / CASE


@pytest.fixture(scope="module")
def labels(planned) -> Path:
    return planned.root / "raw" / "Dataset900_Phantom" / "labelsTr" / f"{CASE}.nii.gz"


@pytest.fixture(scope="module")
def untrained(planned, case: Path) -> dict[int, np.ndarray]:
    """Written by the command itself, to the default folder."""
    planned.run("autosam2", "show", case, "-d", "900", "-c", "tiny")
    return pictures(planned.root / f"autosam2_{CASE}")


@pytest.fixture(scope="module")
def with_opinion(planned, trained: Path):
    """Of the trained model, a copy whose UNet sees every region everywhere (bias > 0) or nowhere (bias < 0)."""

    def copy(bias: float) -> Path:
        folder = planned.root / f"bias_{bias}" / trained.name
        (folder / "fold_0").mkdir(parents=True)
        for name in ("plans.json", "dataset.json"):
            shutil.copy(trained / name, folder)
        content = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
        for name, weights in content["network_weights"].items():
            if name.startswith("unet.decoder.seg_layers") and name.endswith("bias"):
                weights.fill_(bias)
        torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
        return folder

    return copy


def test_untrained_network_is_asked_where_the_truth_is(untrained, labels: Path) -> None:
    truth = np.asarray(nibabel.load(labels).dataobj)
    assert len(untrained) == SELECTED
    assert all(truth[:, :, number].any() for number in untrained)


def test_trained_network_is_asked_where_its_unet_sees_something(
    planned, with_opinion, case: Path, images: Path, untrained, tmp_path: Path
) -> None:
    """On all selected slices here, with one column more for each mask: UNet, fused, truth."""
    model = with_opinion(100.0)
    show(planned, case, "-m", model, "-o", tmp_path / "truth")
    show(planned, images / CASE, "-m", model, "-o", tmp_path / "no_truth", "--slices", "2")
    with_truth, without_truth = pictures(tmp_path / "truth"), pictures(tmp_path / "no_truth")
    assert len(with_truth) == SELECTED
    assert len(without_truth) == 2
    assert set(without_truth) < set(with_truth)
    column = (shape(with_truth)[1] - shape(untrained)[1]) // 2
    assert shape(with_truth)[1] - shape(without_truth)[1] == column


def test_trained_network_prompted_by_the_truth(
    planned, trained: Path, case: Path, labels: Path, untrained, tmp_path: Path
) -> None:
    """On the same slices as the untrained one, of which the one with the largest truth remains."""
    show(planned, case, "-m", trained, "--prompt-with-truth", "--slices", "1", "-o", tmp_path / "pictures")
    area = (np.asarray(nibabel.load(labels).dataobj) > 0).sum((0, 1))
    assert list(pictures(tmp_path / "pictures")) == [max(untrained, key=lambda number: area[number])]


def test_numbers_are_those_of_the_image(planned, case: Path, labels: Path, untrained, tmp_path: Path) -> None:
    """Five empty slices below the head change the title and nothing else."""
    for folder, files in (("imagesTr", case.parent.glob(f"{CASE}_*")), ("labelsTr", [labels])):
        (tmp_path / folder).mkdir()
        for path in files:
            image = nibabel.load(path)
            voxels = np.pad(np.asarray(image.dataobj), ((0, 0), (0, 0), (5, 0)))
            nibabel.save(nibabel.Nifti1Image(voxels, image.affine), tmp_path / folder / path.name)
    show(planned, tmp_path / "imagesTr" / CASE, "-d", "900", "-c", "tiny", "--slices", "2", "-o", tmp_path / "pictures")
    for number, picture in pictures(tmp_path / "pictures").items():
        title = int(MARGIN * len(picture))
        np.testing.assert_array_equal(picture[title:], untrained[number - 5][title:])
        assert (picture[:title] != untrained[number - 5][:title]).any()


@pytest.mark.slow
def test_every_tumour_of_several_has_its_own_box(planned, tmp_path: Path) -> None:
    """On slices with several parts of a region; on all others the pictures are what they are with one box a region."""
    size = ("--size", "32", "64", "64")
    planned.run("autosam2", "make-phantom", tmp_path / "phantom", "--cases", "1", *size, "--tumours", "3")
    other = replace(planned, environment={**planned.environment, "nnUNet_raw": str(tmp_path / "raw")})
    other.run("autosam2", "convert-brats", tmp_path / "phantom", "-d", "1", "-n", "Multifocal")
    case = tmp_path / "raw" / "Dataset001_Multifocal" / "imagesTr" / CASE
    found = {}
    for boxes in (1, 3):
        name = f"boxes_{boxes}"
        patch = ("--patch-size", "32", "64", "64", "--batch-size", "2", "sam2_image_size=64", "slice_fraction=1")
        planned.run("autosam2", "configure", "900", "--name", name, *patch, f"boxes_per_region={boxes}")
        show(planned, case, "-d", "900", "-c", name, "-o", tmp_path / name)
        found[boxes] = pictures(tmp_path / name)
    labels = np.asarray(nibabel.load(case.parents[1] / "labelsTr" / f"{CASE}.nii.gz").dataobj)
    several = []
    for number, picture in found[3].items():
        title = int(MARGIN * len(picture))
        changed = not np.array_equal(picture[title:], found[1][number][title:])
        truth = labels[:, :, number]
        regions = [truth >= least for least in (1, 2, 3) if (truth >= least).any()]
        grown = [ndimage.distance_transform_edt(~region) <= PART_REACH for region in regions]
        parts = max((ndimage.label(each, np.ones((3, 3)))[1] for each in grown), default=0)
        assert not changed or parts > 1  # an islet is left out
        several.append(changed)
    assert any(several)
    assert not all(several)


def test_only_earlier_pictures_are_replaced(planned, case: Path, tmp_path: Path) -> None:
    output = tmp_path / "pictures"
    output.mkdir()
    (output / f"{CASE}_slice_999.png").write_text("earlier")
    show(planned, case, "-d", "900", "-c", "tiny", "--slices", "1", "-o", output)
    (number,) = pictures(output)
    assert number != 999
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    (output / "notes.txt").write_text("mine")
    assert "holds notes.txt" in show(planned, case, "-d", "900", "-c", "tiny", "-o", output, expected=1)
    assert len(list(output.iterdir())) == 2


def test_refusals(planned, trained: Path, with_opinion, case: Path, images: Path, labels: Path, tmp_path: Path) -> None:
    """One line, exit code 1, nothing written."""

    def copied(name: str) -> Path:
        folder = tmp_path / name / "imagesTr"
        folder.mkdir(parents=True)
        for path in case.parent.glob(f"{CASE}_*"):
            shutil.copy(path, folder)
        return folder / CASE

    incomplete, surplus, broken = map(copied, ("incomplete", "surplus", "broken"))
    Path(f"{incomplete}_0002.nii.gz").unlink()
    shutil.copy(f"{surplus}_0000.nii.gz", f"{surplus}_0004.nii.gz")
    content = Path(f"{broken}_0003.nii.gz").read_bytes()
    Path(f"{broken}_0003.nii.gz").write_bytes(content[:2000])
    image = nibabel.load(labels)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:, :, 1:], image.affine), tmp_path / "shorter.nii.gz")
    four = np.where(np.asarray(image.dataobj) == 3, 4, image.dataobj).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(four, image.affine), tmp_path / "four.nii.gz")
    damaged = tmp_path / "damaged"
    shutil.copytree(trained, damaged)
    (damaged / "fold_0" / "checkpoint_final.pth").write_bytes(b"damaged")
    before = set(tmp_path.rglob("*"))

    untrained = ("-d", "900", "-c", "tiny")
    for message, arguments in (
        (f"{CASE}_0002.nii.gz does not exist", (incomplete, "-m", trained)),
        (f"{CASE}_0004.nii.gz is one channel too many", (surplus, "-m", trained)),
        (f"{CASE}_0003.nii.gz cannot be read", (broken, "-m", trained)),
        ("shorter.nii.gz is on another grid", (case, *untrained, "--truth", tmp_path / "shorter.nii.gz")),
        ("four.nii.gz has the labels 4", (case, *untrained, "--truth", tmp_path / "four.nii.gz")),
        ("no truth for", (images / CASE, *untrained)),
        ("no truth for", (images / CASE, "-m", trained, "--prompt-with-truth")),
        ("fold_0/checkpoint_final.pth", (case, "-m", trained, "-f", "3")),
        ("is refused", (case, "-m", damaged)),
        ("plans.json does not exist", (case, "-m", tmp_path / "nothing")),
        ("sees no foreground", (case, "-m", with_opinion(-100.0))),
        ("the network has no SAM2", (case, *untrained, "-tr", "nnUNetTrainerAutoSAM2_UNetOnly")),
        ("is no trainer of AutoSAM2", (case, *untrained, "-tr", "nnUNetTrainer")),
        ("no configuration in", (case, "-d", "900", "-c", "no_such")),
        ("is not the ID or name", (case, "-d", "901")),
        ("The device abacus", (case, *untrained, "--device", "abacus")),
    ):
        line = show(planned, *arguments, "-o", tmp_path / "pictures", expected=1).splitlines()[-1]
        assert line.startswith("Error: ")
        assert message in line
        assert set(tmp_path.rglob("*")) == before
    assert "either -m" in show(planned, case, expected=2)
    assert "goes with -m" in show(planned, case, *untrained, "-f", "1", expected=2)


def test_missing_weights_stop_an_untrained_network(planned, case: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(planned.environment, "AUTOSAM2_SAM2_WEIGHTS", str(tmp_path / "nothing.pt"))
    output = show(planned, case, "-d", "900", "-c", "tiny", "-o", tmp_path / "pictures", expected=1)
    assert "nothing.pt" in output.splitlines()[-1]
    assert not any(tmp_path.iterdir())
