"""What SAM2 is asked about and sees, as `autosam2 show` draws it: several tumours, many classes, CT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_autosam2.architectures.prompts import BOTTOM_RIGHT, MAIN_SHARE, NOT_A_POINT, PART_REACH, POSITIVE, TOP_LEFT
from nnunet_autosam2.config import PLANS_KEY
from nnunet_autosam2.dataset_conversion.phantom import MODALITIES, PhantomCase, make_case
from nnunet_autosam2.show.inside import look_inside
from nnunet_autosam2.show.loading import LoadedModel, Volume, build_untrained, find_shown_case, preprocess
from nnunet_autosam2.show.pictures import SliceView, draw
from tests.show.conftest import save

CPU = torch.device("cpu")
SIZE = (32, 64, 64)
CORNERS_TOUCH = [[1] * 3] * 3
pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(planned: Path, changes: dict[str, Any], **parameters: Any) -> LoadedModel:
    """An untrained hybrid with `changes` in its configuration of the plans and parameters of AutoSAM2."""
    plans = json.loads(planned.read_text())
    plans["configurations"]["3d_fullres"] |= {"patch_size": SIZE, **changes}
    block = plans["configurations"]["tiny"][PLANS_KEY]
    block |= {"black_background": None, "slice_fraction": 0.5, **parameters}
    planned.write_text(json.dumps(plans))
    return build_untrained(planned, "tiny", "nnUNetTrainerAutoSAM2")


def read(model: LoadedModel, folder: Path, channels: list[np.ndarray], labels: np.ndarray) -> Volume:
    """A case of these images and labels, [Z, Y, X], as the network gets it."""
    for number, channel in enumerate(channels):
        save(channel.astype(np.float32), folder / "imagesTr" / f"case_{number:04d}.nii.gz")
    save(labels.astype(np.uint8), folder / "labelsTr" / "case.nii.gz")
    return preprocess(find_shown_case(folder / "imagesTr" / "case", None, model), model)


@pytest.fixture(scope="module")
def multifocal() -> PhantomCase:
    return make_case(SIZE, np.random.default_rng([0, 2]), tumours=3)


def boxes(view: SliceView, region: int) -> list[np.ndarray]:
    """[2, 2] each: (x, y) of two corners."""
    corners = np.flatnonzero(view.labels[region] == TOP_LEFT)
    assert (view.labels[region, corners + 1] == BOTTOM_RIGHT).all()
    return [view.points[region, corner : corner + 2] for corner in corners]


def parts_of(mask: np.ndarray) -> list[np.ndarray]:
    """Main components of [H, W], those that are close together as one."""
    labels, count = ndimage.label(mask, CORNERS_TOUCH)
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    main = np.isin(labels, 1 + np.flatnonzero(area >= MAIN_SHARE * area.max(initial=0)))
    grown, count = ndimage.label(ndimage.distance_transform_edt(~main) <= PART_REACH, CORNERS_TOUCH)
    return [main & (grown == number) for number in range(1, count + 1)] if main.any() else []


def is_around(box: np.ndarray, part: np.ndarray) -> bool:
    """With a margin of a tenth on each side."""
    y, x = np.nonzero(part)
    first, last = (np.array([end(x), end(y)]) for end in (np.min, np.max))
    margin = 0.1 * (last - first + 1) + 1e-4
    outward = np.concatenate([first - box[0], box[1] - last])
    return bool(((outward >= 0) & (outward <= np.tile(margin, 2))).all())


def test_each_of_three_tumours_has_its_own_box_and_points(planned: Path, multifocal: PhantomCase, tmp_path: Path):
    model = build(planned, {}, boxes_per_region=3)
    labels = np.select([multifocal.segmentation == value for value in (2, 1, 4)], [1, 2, 3])
    volume = read(model, tmp_path / "raw", [multifocal.images[modality] for modality in MODALITIES], labels)
    views = look_inside(model, volume, True, None, CPU)
    most = 0
    for view in views:
        drawn = draw(view, "").axes[0].lines
        for region in range(3):
            parts, found = parts_of(view.masks["truth"][region]), boxes(view, region)
            assert len(parts) == len(found)
            most = max(most, len(found))
            positive = view.points[region][view.labels[region] == POSITIVE].astype(int)
            for part in parts:
                assert sum(is_around(box, part) for box in found) == 1
                assert part[positive[:, 1], positive[:, 0]].any()
        assert sum(len(line.get_xdata()) == 5 and line.get_color() == "white" for line in drawn) == len(boxes(view, 0))
    assert most == 3


def test_every_one_of_20_labels_that_wins_with_less_than_one_half_is_prompted(
    planned: Path, dataset_json: dict, multifocal: PhantomCase, tmp_path: Path
):
    labels = {"background": 0, **{f"label {value}": value for value in range(1, 21)}}
    del dataset_json["regions_class_order"]
    (planned.parent / "dataset.json").write_text(json.dumps({**dataset_json, "labels": labels}))
    model = build(planned, {}, region_based=False)._replace(is_trained=True)  # so that the UNet is shown
    volume = read(model, tmp_path / "raw", list(multifocal.images.values()), multifocal.segmentation)
    model.network.set_deep_supervision(True)
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if ".seg_layers." in name:
                weight *= 0.05
        probabilities = model.network.eval()(volume.data[None, :, :28]).unet[0].softmax(1)
    model.network.set_deep_supervision(False)
    assert probabilities.shape[1] == 21
    assert probabilities.max() < 0.5
    views = look_inside(model, volume, False, None, CPU)
    winners = 0
    for view in views:
        for label in range(20):
            wins = view.masks["UNet"][label]
            winners += wins.any()
            assert len(boxes(view, label)) == int(wins.any())
            assert (view.labels[label] == NOT_A_POINT).all() == (not wins.any())
            x, y = view.points[label][view.labels[label] == POSITIVE].astype(int).T
            assert wins[y, x].all()
    assert winners > 3 * len(views)


@pytest.mark.parametrize(
    ("scheme", "least"), [("CTNormalization", 0.5), ("NoNormalization", 0.5), ("RescaleTo01Normalization", 0)]
)
def test_intensities_of_ct_are_neither_black_nor_white(
    planned: Path, dataset_json: dict, multifocal: PhantomCase, tmp_path: Path, scheme: str, least: float
):
    """Hounsfield units of a head: air, brain, a lesion that is a little brighter, bone."""
    brain = multifocal.images["t1"] > 0
    random = np.random.default_rng(0)
    units = np.where(brain, 35 + 25 * (multifocal.segmentation > 0), -1000) + random.normal(0, 5, SIZE)
    units[ndimage.binary_dilation(brain, iterations=2) & ~brain] = 1000
    lesion = units[multifocal.segmentation > 0]
    channel = {"max": lesion.max(), "mean": lesion.mean(), "median": np.median(lesion), "min": lesion.min(),
               "percentile_00_5": np.percentile(lesion, 0.5), "percentile_99_5": np.percentile(lesion, 99.5),
               "std": lesion.std()}  # fmt: skip
    plans = json.loads(planned.read_text())
    plans["foreground_intensity_properties_per_channel"] = {"0": channel}
    planned.write_text(json.dumps(plans))
    (planned.parent / "dataset.json").write_text(json.dumps({**dataset_json, "channel_names": {"0": "CT"}}))
    model = build(planned, {"normalization_schemes": [scheme], "use_mask_for_norm": [False]}, rgb_channels=[0, 0, 0])
    labels = np.select([multifocal.segmentation == value for value in (2, 1, 4)], [1, 2, 3])
    views = look_inside(model, read(model, tmp_path / "raw", [units], labels), True, None, CPU)
    assert views
    for view in views:
        saturated = (view.rgb < 0.01) | (view.rgb > 0.99)
        tumour = view.rgb[view.masks["truth"][0]]
        assert saturated[view.masks["truth"][0]].mean() < 0.01
        assert np.ptp(np.percentile(tumour, [2, 98])) > least
        # Without a normalisation what is far from the foreground's own values is black or white.
        assert scheme == "NoNormalization" or saturated.mean() < 0.05
