from __future__ import annotations

import numpy as np
import pytest
from skimage.morphology import remove_small_objects

from nnunet_autosam2.dataset_conversion.regions import REGIONS
from nnunet_autosam2.postprocessing.rules import Rule, around, clean, label_without, outermost_first

BRATS = {short: region.labels for short, region in REGIONS.items()}
CYSTS = {"WT": (1, 2, 3, 4), "TC": (2, 3, 4), "ET": (3,)}
ORGANS = {"liver": (1, 2), "tumour": (2,), "spleen": (3,)}


def specks(seed: int, labels: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.random((14, 20, 22)) < 0.12) * random.integers(1, labels + 1, (14, 20, 22))


def masks(voxels: np.ndarray, regions: dict[str, tuple[int, ...]] = BRATS) -> dict[str, np.ndarray]:
    return {name: np.isin(voxels, labels) for name, labels in regions.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("region", BRATS)
def test_small_components_go_as_by_scikit_image(seed: int, region: str):
    before = specks(seed)
    after = clean(before, 2.5, BRATS, {region: Rule(smallest_component=10)})
    expected = remove_small_objects(masks(before)[region], max_size=3, connectivity=3)  # 4 voxels have 10 mm³
    assert 0 < expected.sum() < masks(before)[region].sum()
    for name, mask in masks(after).items():
        inner = set(BRATS[name]) <= set(BRATS[region])
        np.testing.assert_array_equal(mask, masks(before)[name] & expected if inner else masks(before)[name])


def test_a_voxel_that_leaves_a_region_stays_in_those_around_it():
    assert [label_without(3, region, BRATS) for region in ("ET", "TC", "WT")] == [2, 1, 0]
    assert [label_without(2, region, BRATS) for region in ("TC", "WT")] == [1, 0]
    assert [label_without(4, region, CYSTS) for region in ("TC", "WT")] == [1, 0]
    assert [label_without(2, region, ORGANS) for region in ("tumour", "liver")] == [1, 0]
    assert label_without(3, "spleen", ORGANS) == 0


def test_regions_and_what_is_around_them():
    assert outermost_first({"ET": (3,), "WT": (1, 2, 3), "TC": (2, 3)}) == ["WT", "TC", "ET"]
    assert [around(region, BRATS) for region in BRATS] == [None, "WT", "TC"]
    assert [around(region, ORGANS) for region in ORGANS] == [None, "liver", None]


def box() -> np.ndarray:
    """1000 voxels of whole tumour, 216 of core and 27 enhancing in two components of 26 and 1."""
    voxels = np.zeros((20, 20, 20), np.uint8)
    voxels[2:12, 2:12, 2:12] = 1
    voxels[4:10, 4:10, 4:10] = 2
    voxels[4:7, 4:7, 4:7] = 3
    voxels[4, 4, 4], voxels[9, 9, 9] = 2, 3
    return voxels


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (Rule(), 27),
        (Rule(smallest_component=1), 27),
        (Rule(smallest_component=2), 26),
        (Rule(smallest_component=27), 0),
        (Rule(smallest_total=27), 27),
        (Rule(smallest_total=28), 0),
        (Rule(smallest_component=2, smallest_total=27), 0),
        (Rule(smallest_share=0.12), 27),
        (Rule(smallest_share=0.13), 0),
    ],
)
def test_what_is_implausible_as_a_whole_becomes_core(rule: Rule, left: int):
    after = clean(box(), 1.0, BRATS, {"ET": rule})
    assert (after == 3).sum() == left
    np.testing.assert_array_equal(masks(after)["TC"], masks(box())["TC"])


def test_the_share_is_of_what_the_outer_rules_have_left():
    voxels = box()
    voxels[14:19, 14:19, 14:19] = 2
    rules = {"ET": Rule(smallest_share=0.1)}
    assert not (clean(voxels, 1.0, BRATS, rules) == 3).any()
    assert (clean(voxels, 1.0, BRATS, {"WT": Rule(smallest_component=200), **rules}) == 3).sum() == 27


def test_nothing_in_nothing_out():
    empty = np.zeros((4, 5, 6), np.uint8)
    np.testing.assert_array_equal(clean(empty, 1.0, BRATS, {"WT": Rule(smallest_total=9)}), empty)
    voxels = box()
    clean(voxels, 1.0, BRATS, {"WT": Rule(smallest_total=9999)})
    np.testing.assert_array_equal(voxels, box())
    assert str(Rule()) == "nothing"
    assert str(Rule(smallest_component=50, smallest_share=0.1)) == (
        "components below 50 mm³, all of it below 0.1 of the region around it"
    )
