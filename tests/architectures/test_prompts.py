from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import pdist

from nnunet_autosam2.architectures.prompts import (
    BOTTOM_RIGHT,
    BOX_MARGIN,
    NEGATIVE,
    NOT_A_POINT,
    NUM_CORNERS,
    POSITIVE,
    RING_GAP,
    RING_WIDTH,
    THRESHOLD,
    TOP_LEFT,
    bounding_boxes,
    generate_prompts,
)

DATA = Path(__file__).parents[3] / "shared" / "data" / "brats2013"
H, W = 60, 90
Y, X = np.mgrid[:H, :W]


def disc(x: float, y: float, radius: float, confidence: float = 0.9) -> np.ndarray:
    """Probabilities that fall from `confidence` in the centre to less than a half outside of the radius."""
    distance = np.hypot(X - x, Y - y)
    return confidence * np.clip(1 - distance / radius * (1 - 0.5 / confidence), 0.01, 1) * (distance < radius + 3)


def stripe(rows: slice, columns: slice) -> np.ndarray:
    p = np.full((H, W), 0.05)
    p[rows, columns] = 0.8
    return p


CASES = {
    "disc": disc(45, 30, 20),
    "small": disc(30, 20, 2),
    "two components": np.maximum(disc(20, 20, 12), disc(70, 45, 8)),
    "corner": disc(0, 0, 15),
    "opposite corner": disc(W - 1, H - 1, 15),
    "left border": disc(0, 30, 10),
    "one voxel": stripe(slice(30, 31), slice(40, 41)),
    "one voxel in the corner": stripe(slice(0, 1), slice(0, 1)),
    "one row": stripe(slice(30, 31), slice(20, 80)),
    "one column": stripe(slice(5, 55), slice(40, 41)),
    "certain": stripe(slice(10, 40), slice(20, 60)) + 0.2,
    "noise": np.random.default_rng(0).random((H, W)),
    "everything": np.full((H, W), 0.7),
    "nothing": np.full((H, W), 0.5),
    "zero": np.zeros((H, W)),
}


Found = tuple[np.ndarray | None, np.ndarray, np.ndarray]
"""Box or None, positives, negatives, all (x, y)"""


def prompts_of(masks: np.ndarray, num_positive: int = 10, num_negative: int = 3) -> list[Found]:
    """Of [M, H, W]; shapes and labels are checked on the way."""
    points, labels = (t.numpy() for t in generate_prompts(torch.from_numpy(masks).float(), num_positive, num_negative))
    count = NUM_CORNERS + num_positive + num_negative
    assert points.shape == (len(masks), count, 2)
    assert labels.shape == (len(masks), count)
    assert np.isfinite(points).all()
    found: list[Found] = []
    for xy, label in zip(points, labels, strict=True):
        corners, positives, negatives = np.split(label, [NUM_CORNERS, NUM_CORNERS + num_positive])
        assert corners.tolist() in ([TOP_LEFT, BOTTOM_RIGHT], [NOT_A_POINT] * 2)
        assert set(positives) <= {POSITIVE, NOT_A_POINT}
        assert set(negatives) <= {NEGATIVE, NOT_A_POINT}
        box = xy[:NUM_CORNERS].ravel() if corners[0] == TOP_LEFT else None
        found.append((box, xy[label == POSITIVE].astype(int), xy[label == NEGATIVE].astype(int)))
    return found


def check_properties(p: np.ndarray, found: Found, num_positive: int = 10, num_negative: int = 3) -> None:
    box, positives, negatives = found
    inside = p.astype(np.float32) > THRESHOLD
    height, width = p.shape
    if not inside.any():
        assert box is None
        assert len(positives) == len(negatives) == 0
        return

    rows, columns = ndimage.find_objects(inside.astype(int))[0]
    x0, y0, x1, y1 = columns.start, rows.start, columns.stop - 1, rows.stop - 1
    margin_x, margin_y = BOX_MARGIN * (x1 - x0 + 1), BOX_MARGIN * (y1 - y0 + 1)
    expected = [
        max(x0 - margin_x, 0),
        max(y0 - margin_y, 0),
        min(x1 + margin_x, width - 1),
        min(y1 + margin_y, height - 1),
    ]
    np.testing.assert_allclose(box, expected, rtol=1e-5)

    assert inside[positives[:, 1], positives[:, 0]].all()
    assert min(num_positive, 1) <= len(positives) <= num_positive
    if not inside.all():
        away = ndimage.distance_transform_cdt(~inside, metric="chessboard")[negatives[:, 1], negatives[:, 0]]
        assert ((away > RING_GAP) & (away <= RING_GAP + RING_WIDTH)).all()
    for points, side in ((positives, 0), (negatives, 2 * (RING_GAP + RING_WIDTH))):
        if len(points) > 1:
            cells = np.sqrt(2 * (num_positive if points is positives else num_negative)) + 1
            assert pdist(points).min() >= max(1, 0.5 * (min(x1 - x0, y1 - y0) + 1 + side) / cells)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("num_positive", "num_negative"), [(10, 3), (1, 1), (0, 3), (10, 0), (0, 0), (40, 20)])
def test_points_box_and_labels(case, num_positive, num_negative):
    (found,) = prompts_of(CASES[case][None], num_positive, num_negative)
    check_properties(CASES[case], found, num_positive, num_negative)


@pytest.mark.real_data
def test_properties_on_every_slice_of_a_real_tumour():
    if not DATA.is_dir():
        pytest.skip("brats2013 is not beside the project")
    segmentation = np.asarray(nibabel.load(next(DATA.glob("*/*_seg.nii.gz"))).dataobj)
    slices = np.moveaxis(segmentation > 0, 2, 0).astype(np.float32)
    assert 20 < slices.any((1, 2)).sum() < len(slices)
    probabilities = ndimage.gaussian_filter(slices, (0, 1.5, 1.5))
    for p, found in zip(probabilities, prompts_of(probabilities), strict=True):
        check_properties(p, found)


def test_a_large_region_gets_all_points_and_a_box():
    ((box, positives, negatives),) = prompts_of(CASES["disc"][None])
    assert box is not None
    assert len(positives) == 10
    assert len(negatives) == 3


def test_one_voxel_is_its_own_positive():
    ((box, positives, negatives),) = prompts_of(CASES["one voxel"][None])
    np.testing.assert_allclose(box, [39.9, 29.9, 40.1, 30.1], rtol=1e-5)
    assert positives.tolist() == [[40, 30]]
    assert len(negatives) == 3


def test_foreground_everywhere_leaves_no_negatives_and_the_box_is_the_image():
    ((box, positives, negatives),) = prompts_of(CASES["everything"][None])
    assert box.tolist() == [0, 0, W - 1, H - 1]
    assert len(positives) == 10
    assert len(negatives) == 0


def test_both_components_get_positives():
    ((_, positives, _),) = prompts_of(CASES["two components"][None])
    components = ndimage.label(CASES["two components"] > THRESHOLD)[0]
    assert set(components[positives[:, 1], positives[:, 0]]) == {1, 2}


def test_positives_are_confident_and_deep_inside():
    half_and_half = stripe(slice(10, 50), slice(10, 80))
    half_and_half[10:50, 45:80] = 0.55
    ((_, positives, _),) = prompts_of(half_and_half[None])
    assert (positives[:, 0] < 45).all()

    flat = np.where(CASES["disc"] > THRESHOLD, 0.8, 0.1)
    ((_, positives, _),) = prompts_of(flat[None])
    depth = ndimage.distance_transform_edt(flat > THRESHOLD)
    assert depth[positives[:, 1], positives[:, 0]].mean() > 1.2 * depth[flat > THRESHOLD].mean()


def test_negatives_are_where_the_network_is_surest_of_the_background():
    p = stripe(slice(20, 40), slice(30, 60))
    p[:, 45:][p[:, 45:] < 0.5] = 0.4
    ((_, _, negatives),) = prompts_of(p[None])
    assert len(negatives) == 3
    assert (negatives[:, 0] < 45).all()


def test_masks_do_not_see_each_other_whatever_the_precision():
    p = torch.from_numpy(np.stack(list(CASES.values()))).float()
    together = generate_prompts(p, 10, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = generate_prompts(p, 10, 3)
    for together_, mixed, *alone in zip(
        together, under_autocast, *(generate_prompts(p[i : i + 1], 10, 3) for i in range(len(p))), strict=True
    ):
        assert torch.equal(together_, torch.cat(alone))
        assert torch.equal(together_, mixed)


def test_bounding_boxes_equal_scipys():
    masks = np.random.default_rng(0).random((50, 12, 17)) > 0.985
    boxes, present = bounding_boxes(torch.from_numpy(masks))
    assert present.tolist() == masks.any((1, 2)).tolist()
    assert 0 < present.sum() < 50
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        for rows, columns in ndimage.find_objects(mask.astype(int)):
            assert box == [columns.start, rows.start, columns.stop - 1, rows.stop - 1]


def test_no_gradient_is_kept():
    assert not generate_prompts(torch.rand(1, 9, 9, requires_grad=True), 2, 2).points.requires_grad
