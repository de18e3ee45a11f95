import copy
import json
import pickle

import pytest
from pydantic import ValidationError

from nnunet_autosam2.config import SAM2_MODELS, AutoSAM2Config, parse_assignments
from nnunet_autosam2.errors import ConfigurationError


def test_defaults_are_the_seeds():
    config = AutoSAM2Config()
    assert (config.slice_fraction, config.enable_unet_decoder, config.enable_sam2) == (0.3, True, True)
    assert (config.num_positive_points, config.num_negative_points) == (10, 3)
    assert (config.bg_blend, config.tumor_blend) == (0.5, 0.5)
    assert (config.initial_lr, config.weight_decay, config.early_stopping_patience) == (1e-4, 1e-4, 10)
    assert (config.bce_weight, config.dice_weight) == (0.3, 0.7)


def test_json_round_trip():
    config = AutoSAM2Config(
        slice_fraction=0.6, class_weights=(0.5, 1, 2), rgb_channels=(3, 1, 2), num_epochs=5, fusion="fixed"
    )
    assert AutoSAM2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert AutoSAM2Config.from_dict({}) == AutoSAM2Config()


def test_is_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        AutoSAM2Config().slice_fraction = 1.0


def test_copies_and_pickles_are_equal_and_serve_as_keys():
    config = AutoSAM2Config(slice_fraction=0.6, class_weights=(1, 2))
    for same in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.updated({"class_weights": [1, 2]})):
        assert same == config
        assert {config: "found"}[same] == "found"
    assert config.updated({"slice_fraction": 0.3}) != config


def test_json_writes_whole_numbers_as_it_likes():
    config = AutoSAM2Config.from_dict({"num_epochs": 5.0, "slice_fraction": 1, "rgb_channels": [2.0, 1, 0]})
    assert (config.num_epochs, config.slice_fraction, config.rgb_channels) == (5, 1.0, (2, 1, 0))
    assert json.dumps(config.to_dict()).count(".0, ") == 3  # slice_fraction and the weights of the two other losses


@pytest.mark.parametrize("model", SAM2_MODELS)
def test_every_model_of_the_sam2_package_is_known(model):
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    assert {f"facebook/{name}" for name in SAM2_MODELS} == HF_MODEL_ID_TO_FILENAMES.keys()
    assert AutoSAM2Config(sam2_model=model).sam2_model == model


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slice_fraction", -0.1),
        ("slice_fraction", 1.01),
        ("slice_fraction", "0.3"),
        ("slice_fraction", float("nan")),
        ("slice_fraction", True),
        ("boxes_per_region", 0),
        ("prompt_threshold", 0.005),
        ("prompt_threshold", 0.51),
        ("bg_blend", 2),
        ("tumor_blend", -1),
        ("num_positive_points", -1),
        ("num_positive_points", 2.5),
        ("num_negative_points", float("inf")),
        ("weight_decay", float("inf")),
        ("initial_lr", 0),
        ("early_stopping_patience", 0),
        ("num_epochs", 0),
        ("enable_sam2", 1),
        ("fusion", "learned"),
        ("backbone", None),
        ("sam2_model", "sam2-tiny"),
        ("sam2_checkpoint", ""),
        ("sam2_image_size", 500),
        ("sam2_image_size", 32),
        ("sam2_image_size", 8192),
        ("lora_rank", 10**9),
        ("num_positive_points", 10**9),
        ("fusion", "x" * 5000),
        ("num_epochs", 10**400),
        ("slice_fraction", 10**400),
        ("sam2_tuning", ["decoder"]),
        ("class_weights", []),
        ("class_weights", [0, 0]),
        ("class_weights", [1, -1]),
        ("class_weights", 1.0),
        ("rgb_channels", [0, 1]),
        ("rgb_channels", [0, 1, -2]),
    ],
)
def test_impossible_values_are_named(key, value):
    with pytest.raises(ConfigurationError) as error:
        AutoSAM2Config.from_dict({key: value})
    message = str(error.value)
    assert message.startswith(f"{key} = ")
    assert "has to be" in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({"slice_fraction": 1.5}, "1.5 is not possible: it has to be a number from 0 to 1."),
        ({"num_positive_points": -1}, "-1 is not possible: it has to be a whole number from 0 to 1000."),
        ({"num_epochs": 0.5}, "0.5 is not possible: it has to be null or a whole number of 1 or more."),
        ({"initial_lr": 0.0}, "0.0 is not possible: it has to be a number above 0."),
        ({"fusion": "learned"}, "'learned' is not possible: it has to be one of fixed, gated, convolutional, off."),
        ({"sam2_image_size": 500}, "500 is not possible: it has to be a multiple of 32 from 64 to 4096."),
        ({"sam2_checkpoint": ""}, "'' is not possible: it has to be a file, auto or random."),
        ({"enable_sam2": 1}, "1 is not possible: it has to be true or false."),
        (
            {"class_weights": [0, 0]},
            "[0, 0] is not possible: it has to be null or a list of numbers of 0 or more, one of them above 0.",
        ),
        (
            {"rgb_channels": [0, 1]},
            "[0, 1] is not possible: it has to be null or 3 whole numbers of 0 or more.",
        ),
    ],
    ids=str,
)
def test_what_is_allowed_is_said(values, allowed):
    (key,) = values
    with pytest.raises(ConfigurationError) as error:
        AutoSAM2Config(**values)
    assert str(error.value) == f"{key} = {allowed}"


@pytest.mark.parametrize("slice_fraction", [0, 0.3, 0.6, 1])
def test_any_fraction_from_0_to_1(slice_fraction):
    config = AutoSAM2Config(slice_fraction=slice_fraction)
    assert config.uses_sam2 == (slice_fraction > 0)


@pytest.mark.parametrize("off", [{"enable_sam2": False}, {"slice_fraction": 0}])
def test_nothing_left_to_predict_with(off):
    with pytest.raises(ConfigurationError, match="nothing is left to predict with"):
        AutoSAM2Config.from_dict({"enable_unet_decoder": False, **off})


def test_loss_needs_a_term():
    with pytest.raises(ConfigurationError, match="bce_weight"):
        AutoSAM2Config(bce_weight=0, dice_weight=0)


def test_a_unet_that_nothing_would_train_is_refused():
    with pytest.raises(ConfigurationError, match="unet_loss_weight = 0 leaves nothing that trains the UNet"):
        AutoSAM2Config(unet_loss_weight=0)
    for key, value in (("joint_training", True), ("enable_sam2", False), ("enable_unet_decoder", False)):
        assert AutoSAM2Config.from_dict({"unet_loss_weight": 0, key: value}).unet_loss_weight == 0


def test_a_backbone_checkpoint_needs_the_backbone_of_the_plans():
    with pytest.raises(ConfigurationError, match="a file or auto with backbone = plans"):
        AutoSAM2Config(backbone_checkpoint="auto")
    assert AutoSAM2Config(backbone="plans", backbone_checkpoint="auto").backbone_checkpoint == "auto"


@pytest.mark.parametrize("others", [{}, {"backbone": "plans", "backbone_checkpoint": "auto"}])
def test_an_encoder_checkpoint_needs_the_backbone_of_the_plans_and_no_other_start(others: dict):
    with pytest.raises(
        ConfigurationError, match=r"encoder_checkpoint = 'mae\.pth' is not possible: .* backbone = plans"
    ):
        AutoSAM2Config(encoder_checkpoint="mae.pth", **others)
    assert AutoSAM2Config(backbone="plans", encoder_checkpoint="mae.pth").encoder_checkpoint == "mae.pth"


def test_what_is_frozen_was_trained():
    with pytest.raises(ConfigurationError, match=r"freeze_backbone = True.*backbone_checkpoint"):
        AutoSAM2Config(backbone="plans", freeze_backbone=True)
    trained = {"backbone": "plans", "backbone_checkpoint": "auto", "freeze_backbone": True}
    AutoSAM2Config(**trained, unet_loss_weight=0.0)
    AutoSAM2Config(**trained, enable_sam2=False)  # for a prediction
    with pytest.raises(ConfigurationError, match=r"joint_training = True.*freeze_backbone"):
        AutoSAM2Config(**trained, joint_training=True)


def test_without_masks_there_are_features_in_a_decoder():
    with pytest.raises(
        ConfigurationError, match=r"fusion = 'off'.*fixed, gated or convolutional with feature_fusion = false"
    ):
        AutoSAM2Config(fusion="off")
    with pytest.raises(ConfigurationError, match=r"feature_fusion = True.*enable_unet_decoder"):
        AutoSAM2Config(feature_fusion=True, enable_unet_decoder=False)
    with pytest.raises(ConfigurationError, match=r"propagation = 'memory'.*linear with fusion = off"):
        AutoSAM2Config(feature_fusion=True, fusion="off", propagation="memory")
    assert not AutoSAM2Config(feature_fusion=True, fusion="off").makes_masks
    assert AutoSAM2Config(feature_fusion=True, fusion="off", enable_sam2=False).unet_outputs_train


def test_unknown_keys_are_errors_and_the_nearest_is_named():
    with pytest.raises(ConfigurationError, match="Did you mean slice_fraction"):
        AutoSAM2Config.from_dict({"slice_fractoin": 0.5})
    with pytest.raises(ConfigurationError, match="Known keys: slice_fraction, "):
        AutoSAM2Config.from_dict({"xyz": 1})
    with pytest.raises(ConfigurationError, match="Did you mean fusion"):
        AutoSAM2Config.from_dict({"slice_fraction": 7, "fusoin": 1})


@pytest.mark.parametrize("block", [None, 3, ["slice_fraction"], "slice_fraction"])
def test_a_block_that_is_no_mapping(block):
    with pytest.raises(ConfigurationError, match="has to map keys to values"):
        AutoSAM2Config.from_dict(block)


def test_differences():
    old, new = AutoSAM2Config(), AutoSAM2Config(fusion="fixed", num_epochs=3)
    assert new.differences(old) == {"fusion": ("fixed", "gated"), "num_epochs": (3, None)}


def test_assignments_are_read_as_json_or_text():
    assert parse_assignments(
        [
            "slice_fraction=0.6",
            "fusion=fixed",
            "enable_sam2=false",
            "test_run=True",
            "class_weights=[1, 2]",
            "num_epochs=None",
            "sam2_checkpoint=a=b.pt",
        ]
    ) == {
        "slice_fraction": 0.6,
        "fusion": "fixed",
        "enable_sam2": False,
        "test_run": True,
        "class_weights": [1, 2],
        "num_epochs": None,
        "sam2_checkpoint": "a=b.pt",
    }


@pytest.mark.parametrize("assignments", [["slice_fraction"], ["=3"], ["fusion=fixed", "fusion=gated"]])
def test_malformed_assignments(assignments):
    with pytest.raises(ConfigurationError):
        parse_assignments(assignments)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sam2_image_size": 512}, (4, 80)),
        ({"sam2_image_size": 512, "backbone": "plans"}, (4, 26)),
        ({"sam2_image_size": 256}, (16, 320)),
        ({"sam2_model": "sam2.1-hiera-large", "sam2_image_size": 4096}, (1, 1)),
        ({"sam2_chunk_size": 5}, (5, 5)),
    ],
)
def test_slices_at_once_follow_their_size_unless_they_are_given(changes, expected):
    assert AutoSAM2Config(**changes).slices_at_once == expected


@pytest.mark.parametrize(("region_based", "expected"), [(True, [0.2] * 3), (False, [0.9, 0.2, 0.2])])
def test_each_output_has_its_blend(region_based, expected):
    config = AutoSAM2Config(bg_blend=0.9, tumor_blend=0.2, region_based=region_based)
    assert config.blends(3) == expected
