import pytest

from nnunet_autosam2.architectures.modes import CHANGEABLE, changed_mode
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError

CONFIG = AutoSAM2Config()


def test_what_may_change_are_parameters():
    assert set(CHANGEABLE) <= set(AutoSAM2Config.model_fields)


def test_a_change_leaves_the_rest():
    changed = changed_mode(CONFIG, {"slice_fraction": 0.6, "tumor_blend": 0.7}, has_sam2=True, has_decoder=True)
    assert CONFIG.differences(changed) == {"slice_fraction": (0.3, 0.6), "tumor_blend": (0.5, 0.7)}


@pytest.mark.parametrize(
    ("changes", "has", "message"),
    [
        (
            {"sam2_tuning": "full"},
            {},
            r"^sam2_tuning cannot be changed after construction\. Possible: slice_fraction, ",
        ),
        ({"slice_fraction": 2}, {}, "slice_fraction = 2"),
        ({}, {"has_sam2": False}, "built without SAM2"),
        ({}, {"has_decoder": False}, "built without the UNet's decoder"),
    ],
)
def test_refused(changes: dict, has: dict, message: str):
    with pytest.raises(ConfigurationError, match=message):
        changed_mode(CONFIG, changes, **{"has_sam2": True, "has_decoder": True, **has})


def test_off_needs_no_part():
    assert not changed_mode(CONFIG, {"enable_sam2": False}, has_sam2=False, has_decoder=True).uses_sam2
    changed = changed_mode(CONFIG, {"enable_unet_decoder": False}, has_sam2=True, has_decoder=False)
    assert not changed.enable_unet_decoder
