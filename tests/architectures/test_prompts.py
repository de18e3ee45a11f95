from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import pdist

from nnunet_autosam2.architectures import distance, prompts
from nnunet_autosam2.architectures.prompts import (
    BOTTOM_RIGHT,
    BOX_MARGIN,
    MAIN_SHARE,
    NEGATIVE,
    NOT_A_POINT,
    NUM_CORNERS,
    POSITIVE,
    RING_GAP,
    RING_WIDTH,
    THRESHOLD,
    TOP_LEFT,
    Prompts,
    bounding_boxes,
    generate_prompts,
)
from tests.shared_data import DATA

REAL_CASES = ("tcga_lgg/TCGA-DU-7294", *(f"brats2013/brats_2013_pat000{i}_1" for i in (3, 4, 5, 6)))
REGIONS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
PATCH = 128
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
    "saturated": (disc(45, 30, 20) > 0.5).astype(float),
    "saturated everywhere": np.ones((H, W)),
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


def ring_of(inside: np.ndarray) -> np.ndarray:
    away = ndimage.distance_transform_edt(~inside)
    return inside.any() & (away > RING_GAP) & (away <= RING_GAP + RING_WIDTH)


def spacings(inside: np.ndarray, ring: np.ndarray, num_positive: int, num_negative: int) -> tuple[float, float]:
    """Least distance between two positives and between two negatives."""
    share, ring_share = inside.sum() / (2 * max(num_positive, 1)), ring.sum() / (2 * max(num_negative, 1))
    return max(1, np.sqrt(share)), max(1, np.sqrt(ring_share), ring_share / RING_WIDTH)


def inside_of(p: np.ndarray) -> np.ndarray:
    """The main components of the region, by SciPy."""
    components, count = ndimage.label(p > THRESHOLD, [[1] * 3] * 3)
    weights = np.array(ndimage.sum_labels(p, components, range(1, count + 1)))
    return np.isin(components, 1 + np.flatnonzero(weights >= MAIN_SHARE * weights.max(initial=0)))


def reference(p: np.ndarray, num_positive: int = 10, num_negative: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives of one mask, by SciPy's distance transform and the greedy selection written out."""
    inside = inside_of(p)
    ring = ring_of(inside)
    apart, ring_apart = spacings(inside, ring, num_positive, num_negative)
    positives = greedy(p * ndimage.distance_transform_edt(inside), num_positive, apart)
    return positives, greedy((1 - p) * ring, num_negative, ring_apart)


def greedy(score: np.ndarray, count: int, spacing: float) -> np.ndarray:
    """The best pixel, of several the remotest from the points so far; then without the pixels near it, and so on."""
    y, x = np.indices(score.shape)
    remoteness = np.full(score.shape, np.inf)
    points: list[tuple[int, int]] = []
    while len(points) < count and score.max() > 0:
        best = np.where(score == score.max(), remoteness, -1)
        row, column = (int(i) for i in np.unravel_index(best.argmax(), best.shape))
        points.append((column, row))
        distance = np.hypot(x - column, y - row)
        remoteness = np.minimum(remoteness, distance)
        score = np.where(distance < spacing, 0, score)
    return np.array(points).reshape(-1, 2)


def real_masks(case: str) -> np.ndarray:
    """[M, PATCH, PATCH] of a case: every region on every slice that has it, in a patch around the tumour."""
    file = DATA / case / f"{Path(case).name}_seg.nii.gz"
    if not file.is_file():
        pytest.skip(f"{case} is not beside the project")
    segmentation = np.moveaxis(np.asarray(nibabel.load(file).dataobj), 2, 0)
    _, *centre = (int(np.mean(positions)) for positions in np.nonzero(segmentation))
    top, left = (min(max(c - PATCH // 2, 0), n - PATCH) for c, n in zip(centre, segmentation.shape[1:], strict=True))
    patch = segmentation[:, top : top + PATCH, left : left + PATCH]
    regions = np.concatenate([np.isin(patch, labels) for labels in REGIONS.values()])
    return regions[regions.any((1, 2))]


def realistic(masks: np.ndarray) -> np.ndarray:
    """Probabilities as of a trained network: blurred at the boundary, surer here than there."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(masks.shape), (0, 8, 8))
    logits = 8 * (ndimage.gaussian_filter(masks.astype(float), (0, 1.5, 1.5)) - 0.5) + noise / noise.std()
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def check_properties(p: np.ndarray, found: Found, num_positive: int = 10, num_negative: int = 3) -> None:
    box, positives, negatives = found
    inside = inside_of(p.astype(np.float32))
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

    ring = ring_of(inside)
    assert inside[positives[:, 1], positives[:, 0]].all()
    assert ring[negatives[:, 1], negatives[:, 0]].all()
    assert min(num_positive, 1) <= len(positives) <= num_positive
    assert min(num_negative, ring.any()) <= len(negatives) <= num_negative
    for points, apart in zip((positives, negatives), spacings(inside, ring, num_positive, num_negative), strict=True):
        assert len(points) < 2 or pdist(points).min() >= apart - 1e-6


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("num_positive", "num_negative"), [(10, 3), (1, 1), (0, 3), (10, 0), (0, 0), (40, 40)])
def test_points_box_and_labels(case, num_positive, num_negative):
    (found,) = prompts_of(CASES[case][None], num_positive, num_negative)
    check_properties(CASES[case], found, num_positive, num_negative)


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["realistic", "truth"])
@pytest.mark.parametrize("case", [*REAL_CASES[:2], *(pytest.param(x, marks=pytest.mark.slow) for x in REAL_CASES[2:])])
def test_the_selection_is_as_good_as_the_references_on_real_cases(case, kind):
    """With probabilities that differ everywhere, and with those of exactly 0 and 1, where most pixels are equal."""
    masks = real_masks(case)
    probabilities = realistic(masks) if kind == "realistic" else masks.astype(np.float32)
    assert len(probabilities) > 50
    confidence, spacing = [], []
    for p, found in zip(probabilities, prompts_of(probabilities), strict=True):
        check_properties(p, found)
        for points, expected, sure in zip(found[1:], reference(p), (p, 1 - p), strict=True):
            assert len(points) == len(expected)
            if len(points) > 0:
                confidence.append(deviation(*(sure[xy[:, 1], xy[:, 0]].mean() for xy in (points, expected))))
            if len(points) > 1:
                spacing.append(deviation(*(pdist(xy).min() for xy in (points, expected))))
    print(
        f"{len(masks)} masks: confidence deviates by up to {max(confidence):.2%}, spacing by up to {max(spacing):.2%}"
    )
    assert max(confidence) < 0.05
    assert max(spacing) < 0.05


def deviation(value: float, expected: float) -> float:
    return abs(value / expected - 1)


def test_box_can_be_left_out():
    p = torch.from_numpy(np.stack(list(CASES.values()))).float()
    points, labels = generate_prompts(p, 10, 3)
    points_without, labels_without = generate_prompts(p, 10, 3, box=False)
    assert (labels_without[:, :NUM_CORNERS] == NOT_A_POINT).all()
    assert torch.equal(labels_without[:, NUM_CORNERS:], labels[:, NUM_CORNERS:])
    assert torch.equal(points_without, points)


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


@pytest.mark.parametrize("case", ["everything", "saturated everywhere"])
def test_foreground_everywhere_leaves_no_negatives_and_the_box_is_the_image(case):
    ((box, positives, negatives),) = prompts_of(CASES[case][None])
    assert box.tolist() == [0, 0, W - 1, H - 1]
    assert len(positives) == 10
    assert len(negatives) == 0


def test_both_components_get_positives():
    ((_, positives, _),) = prompts_of(CASES["two components"][None])
    components = ndimage.label(CASES["two components"] > THRESHOLD)[0]
    assert set(components[positives[:, 1], positives[:, 0]]) == {1, 2}


def test_a_stray_pixel_changes_no_prompt():
    p = disc(30, 30, 12)
    stray = p.copy()
    stray[55, 85] = 0.99
    for expected, found in zip(prompts_of(p[None])[0], prompts_of(stray[None])[0], strict=True):
        np.testing.assert_array_equal(found, expected)
    stray[50:58, 80:88] = 0.99  # another part of the region
    ((box, positives, _),) = prompts_of(stray[None])
    assert box[2] > 85
    assert (positives[:, 0] > 78).any()


def test_the_first_positive_weighs_confidence_against_distance():
    flat = np.where(CASES["disc"] > THRESHOLD, 0.8, 0.1)
    ((_, positives, _),) = prompts_of(flat[None], 1)
    assert positives.tolist() == [[45, 30]]

    discs = np.where(np.hypot(X - 20, Y - 30) < 10, 0.6, 0.1) + np.where(np.hypot(X - 60, Y - 30) < 7, 0.8, 0)
    ((_, positives, _),) = prompts_of(discs[None], 1)
    assert positives.tolist() == [[60, 30]]  # 0.9 and 7 pixels deep, against 0.6 and 10


def test_negatives_are_where_the_network_is_surest_of_the_background():
    p = stripe(slice(20, 40), slice(30, 60))
    p[:, 45:][p[:, 45:] < 0.5] = 0.4
    ((_, _, negatives),) = prompts_of(p[None])
    assert len(negatives) == 3
    assert (negatives[:, 0] < 45).all()


def test_negatives_surround_the_region_where_all_are_equally_sure():
    ((_, _, negatives),) = prompts_of(CASES["saturated"][None], num_negative=8)
    assert len(negatives) == 8
    angles = np.sort(np.arctan2(negatives[:, 1] - 30, negatives[:, 0] - 45))
    assert np.diff([*angles, angles[0] + 2 * np.pi]).max() < np.pi / 2


def test_masks_do_not_see_each_other_whatever_the_precision():
    p = torch.from_numpy(np.stack(list(CASES.values()))).float()
    together = generate_prompts(p, 10, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = generate_prompts(p, 10, 3)
    check_alone(p, together, under_autocast)


def check_alone(p: torch.Tensor, *found: Prompts, **options) -> None:
    """Each of `found` has of every mask what `generate_prompts` makes of it alone."""
    alone = [generate_prompts(p[i : i + 1], 10, 3, **options) for i in range(len(p))]
    for together in found:
        for ours, *expected in zip(together, *alone, strict=True):
            assert torch.equal(ours, torch.cat(expected))


def test_a_gpus_way_is_a_cpus(monkeypatch):
    """Where a GPU would have to be waited for, it looks at all pixels."""
    p = torch.from_numpy(np.stack(list(CASES.values()))).float()
    expected = generate_prompts(p, 10, 3)
    monkeypatch.setattr(prompts, "_candidates", prompts._all_pixels)
    monkeypatch.setattr(distance, "_least_by_shifts", lambda squares, _limit: distance._least_at_once(squares))
    for found, each in zip(generate_prompts(p, 10, 3), expected, strict=True):
        assert torch.equal(found, each)


def test_bounding_boxes_equal_scipys():
    masks = np.random.default_rng(0).random((50, 12, 17)) > 0.985
    boxes, present = bounding_boxes(torch.from_numpy(masks))
    assert present.tolist() == masks.any((1, 2)).tolist()
    assert 0 < present.sum() < 50
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        for rows, columns in ndimage.find_objects(mask.astype(int)):
            assert box == [columns.start, rows.start, columns.stop - 1, rows.stop - 1]


class TestParts:
    """Prompts for each part of a region."""

    def test_a_region_in_one_part_has_the_prompts_that_it_had(self):
        p = torch.from_numpy(
            np.stack([CASES[name] for name in ("disc", "small", "nothing", "certain", "zero")])
        ).float()
        expected, found = generate_prompts(p, 10, 3), generate_prompts(p, 10, 3, parts=3)
        assert found.labels.shape == (len(p), 3 * 15)
        assert torch.equal(found.labels[:, :15], expected.labels)
        there = expected.labels != NOT_A_POINT
        assert torch.equal(found.points[:, :15][there], expected.points[there])
        assert (found.labels[:, 15:] == NOT_A_POINT).all()

    @pytest.mark.parametrize("parts", [2, 3, 5])
    def test_each_part_has_the_prompts_of_a_region_that_is_this_part_alone(self, parts: int):
        """Heaviest first; of three discs in two prompts the second is about two."""
        discs = [disc(20, 16, 9), disc(70, 16, 12), disc(45, 48, 6)]
        heaviest_first = [discs[1], discs[0], discs[2]]
        rest = heaviest_first[parts - 1 :]
        alone = heaviest_first[: parts - 1] + ([np.max(rest, axis=0)] if rest else [])
        p = np.max(discs, axis=0)
        found = generate_prompts(torch.from_numpy(p[None]).float(), 10, 3, parts=parts)
        expected = generate_prompts(torch.from_numpy(np.stack(alone)).float(), 10, 3)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.unflatten(1, (parts, -1))[0, : len(alone)], theirs)
        assert (found.labels.unflatten(1, (parts, -1))[0, len(alone) :] == NOT_A_POINT).all()

    @pytest.mark.parametrize(("gap", "boxes"), [(9, 1), (10, 1), (12, 2), (30, 2)])
    def test_components_that_are_close_are_one_part(self, gap: int, boxes: int):
        p = np.maximum(stripe(slice(10, 40), slice(5, 25)), stripe(slice(10, 40), slice(24 + gap, 44 + gap)))
        labels = generate_prompts(torch.from_numpy(p[None]).float(), 10, 3, parts=4).labels
        assert (labels == TOP_LEFT).sum() == boxes

    def test_no_negative_point_is_on_or_near_another_part(self):
        p = np.maximum(stripe(slice(10, 40), slice(5, 25)), stripe(slice(10, 40), slice(36, 60)))
        points, labels = generate_prompts(torch.from_numpy(p[None]).float(), 10, 40, parts=2)
        x, y = points[labels == NEGATIVE].int().T.numpy()
        assert len(x) > 20
        assert (ndimage.distance_transform_edt(p < 0.5)[y, x] > RING_GAP).all()

    def test_masks_do_not_see_each_other_whatever_the_precision(self):
        p = torch.from_numpy(np.stack([*CASES.values(), 0.6 * CASES["two components"]])).float()
        options = {"parts": 3, "least": 0.2}
        together = generate_prompts(p, 10, 3, **options)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under_autocast = generate_prompts(p, 10, 3, **options)
        check_alone(p, together, under_autocast, **options)
        assert ((together.labels == TOP_LEFT).sum(1) > 1).any()

    def test_nothing_anywhere(self):
        assert (generate_prompts(torch.zeros(2, 20, 30), 10, 3, parts=3).labels == NOT_A_POINT).all()


class TestLowerThreshold:
    """For a region of which the UNet is unsure everywhere on a slice."""

    def test_it_is_prompted_as_if_the_threshold_were_lower(self):
        unsure = 0.45 / 0.9 * torch.from_numpy(disc(45, 30, 20)[None]).float()  # 0.45 in its centre
        for least in (THRESHOLD, 0.46):
            assert (generate_prompts(unsure, 10, 3, least=least).labels == NOT_A_POINT).all()
        found = generate_prompts(unsure, 10, 3, least=0.3)
        boxes, _ = bounding_boxes(unsure > 0.3)
        assert torch.equal(found.labels, generate_prompts(unsure * 0.5 / 0.3, 10, 3).labels)
        low, high = found.points[0, :NUM_CORNERS]
        assert (low < boxes[0, :2]).all()
        assert (high > boxes[0, 2:]).all()
        x, y = found.points[0][found.labels[0] == POSITIVE].int().T
        assert len(x) == 10
        assert (unsure[0, y, x] > 0.3).all()

    def test_it_does_not_touch_a_region_that_the_unet_sees(self):
        p = torch.from_numpy(np.stack([each for each in CASES.values() if each.max() > THRESHOLD])).float()
        for ours, expected in zip(generate_prompts(p, 10, 3, least=0.1), generate_prompts(p, 10, 3), strict=True):
            assert torch.equal(ours, expected)


def test_no_gradient_is_kept():
    assert not generate_prompts(torch.rand(1, 9, 9, requires_grad=True), 2, 2).points.requires_grad
