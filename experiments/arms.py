"""What the experiment compares: trainers with their parameters, from scratch or from the weights of another arm."""

from __future__ import annotations

from typing import NamedTuple

ON_BASELINE = "nnUNetTrainerAutoSAM2_OnBaseline_Short"
UNET_ONLY = "nnUNetTrainerAutoSAM2_UNetOnly_Short"
WITHOUT_SAM2 = ("nnUNetTrainerShort", UNET_ONLY)


class Arm(NamedTuple):
    title: str
    trainer: str
    parameters: tuple[str, ...] = ()
    starts_from: str | None = None
    """The arm whose weights it starts from"""
    in_time: bool = False
    """It has fewer epochs: `--in-time-epochs`"""

    @property
    def asks_sam2(self) -> bool:
        return not self.trainer.startswith(WITHOUT_SAM2) and "enable_sam2=false" not in self.parameters


ARMS = {
    "nnunet": Arm("nnU-Net", "nnUNetTrainerShort"),
    "unet_only": Arm("UNet only", UNET_ONLY),
    "hybrid_30_fixed": Arm("hybrid 30 %, fixed", "nnUNetTrainerAutoSAM2_Short", ("fusion=fixed",)),
    "hybrid_30_gated": Arm("hybrid 30 %, gated", "nnUNetTrainerAutoSAM2_Short"),
    "hybrid_30_joint": Arm(
        "hybrid 30 %, gated, joint training", "nnUNetTrainerAutoSAM2_Short", ("joint_training=true",)
    ),
    "hybrid_60_fixed": Arm("hybrid 60 %, fixed", "nnUNetTrainerAutoSAM2_Short", ("slice_fraction=0.6", "fusion=fixed")),
    "hybrid_60_gated": Arm("hybrid 60 %, gated", "nnUNetTrainerAutoSAM2_Short", ("slice_fraction=0.6",)),
    "upgrade": Arm("nnU-Net, frozen, SAM2 on it", ON_BASELINE, starts_from="nnunet"),
    "upgrade_untrained": Arm("the same, SAM2's weights random", ON_BASELINE, ("sam2_checkpoint=random",), "nnunet"),
    "upgrade_random": Arm("the same, slices at random", f"{ON_BASELINE}_AtRandom", starts_from="nnunet"),
    "upgrade_8": Arm("the same, windows of 8", ON_BASELINE, ("training_slices=8",), starts_from="nnunet"),
    "upgrade_2": Arm("the same, windows of 2", ON_BASELINE, ("training_slices=2",), starts_from="nnunet"),
    "upgrade_all": Arm("the same, all slices", ON_BASELINE, ("training_slices=null",), starts_from="nnunet"),
    "upgrade_all_in_time": Arm(
        "the same, all slices, in the time of windows", ON_BASELINE, ("training_slices=null",), "nnunet", in_time=True
    ),
    "upgrade_features": Arm("the same, features too", ON_BASELINE, ("feature_fusion=true",), starts_from="nnunet"),
    "upgrade_features_alone": Arm(
        "nnU-Net, frozen, SAM2's features in it", ON_BASELINE, ("feature_fusion=true", "fusion=off"), "nnunet"
    ),
    "upgrade_features_noise": Arm(
        "nnU-Net, frozen, noise in the place of SAM2's features in it",
        f"{ON_BASELINE}_Noise",
        ("feature_fusion=true", "fusion=off"),
        "nnunet",
    ),
    "upgrade_convolutional": Arm(
        "nnU-Net, frozen, SAM2 on it, a gate that sees", ON_BASELINE, ("fusion=convolutional",), "nnunet"
    ),
    "upgrade_prompts": Arm(
        "nnU-Net, frozen, SAM2 on it, prompts by part and where it is unsure",
        ON_BASELINE,
        ("boxes_per_region=4", "prompt_threshold=0.3"),
        "nnunet",
    ),
    "upgrade_grey": Arm(
        "nnU-Net, frozen, SAM2 on it, its background mid-grey", ON_BASELINE, ("black_background=false",), "nnunet"
    ),
    "upgrade_axes": Arm("nnU-Net, frozen, SAM2 on it, along three axes", ON_BASELINE, ("slice_axes=3",), "nnunet"),
    "upgrade_everything": Arm(
        "nnU-Net, frozen, all of these together",
        ON_BASELINE,
        ("feature_fusion=true", "fusion=convolutional", "boxes_per_region=4", "prompt_threshold=0.3", "slice_axes=3"),
        "nnunet",
    ),
    "upgrade_slow": Arm("the same, a third of the learning rate", ON_BASELINE, ("initial_lr=3e-4",), "nnunet"),
    "upgrade_fast": Arm("the same, thrice the learning rate", ON_BASELINE, ("initial_lr=3e-3",), "nnunet"),
    "nnunet_then_features": Arm(
        "nnU-Net, then SAM2 and its features on it",
        ON_BASELINE,
        ("freeze_backbone=false", "feature_fusion=true"),
        "nnunet",
    ),
    "nnunet_then_sam2": Arm("nnU-Net, then SAM2 on it", ON_BASELINE, ("freeze_backbone=false",), starts_from="nnunet"),
    "nnunet_then_alone": Arm(
        "nnU-Net, then the same without SAM2",
        ON_BASELINE,
        ("enable_sam2=false", "freeze_backbone=false"),
        starts_from="nnunet",
    ),
    "original": Arm("nnU-Net, the original's UNet", "nnUNetTrainerShort_OriginalUNet"),
    "original_he": Arm("the same, nnU-Net's first weights", "nnUNetTrainerShort_OriginalUNet_He"),
    "original_instance": Arm("the same, instance norms", "nnUNetTrainerShort_OriginalUNet_InstanceNorm"),
    "original_onecycle": Arm("the same, AdamW and OneCycle", "nnUNetTrainerShort_OriginalUNet_OneCycle"),
    "original_loss": Arm("the same, weighted BCE and Dice", "nnUNetTrainerShort_OriginalUNet_WeightedLoss"),
    "onecycle": Arm("nnU-Net, AdamW and OneCycle", "nnUNetTrainerShort_OneCycle"),
    "loss": Arm("nnU-Net, weighted BCE and Dice", "nnUNetTrainerShort_WeightedLoss"),
    "deep_supervision": Arm("nnU-Net, its coarsest output counted", "nnUNetTrainerShort_DeepSupervision"),
    "planned": Arm("UNet only, nnU-Net's network", UNET_ONLY, ("backbone=plans",)),
    "unet_only_slow": Arm("UNet only, a third of the learning rate", UNET_ONLY, ("initial_lr=3e-4",)),
    "unet_only_fast": Arm("UNet only, thrice the learning rate", UNET_ONLY, ("initial_lr=3e-3",)),
}
"""Those that start from nnU-Net have its iterations before their own, so that they compare with each other."""
REFERENCES = ("unet_only", "nnunet", "nnunet_then_alone", "upgrade_untrained")
"""Those that arms of as many iterations are compared with; with `nnunet` all are."""
