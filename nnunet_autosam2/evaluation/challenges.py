"""The challenges that `brats-evaluation` knows, and what it does for each of them."""

from __future__ import annotations

from collections.abc import Collection

from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES
from nnunet_autosam2.errors import ConfigurationError

CHALLENGES = {
    "gli": RELEASES["2023-gli"],
    "mets": RELEASES["2023-met"],
    "ped": RELEASES["2024-ped"],
    "MenPre": RELEASES["2023-men"],
    "GoAT": RELEASES["2024-goat"],
    "MenRT": RELEASES["2024-men-rt"],
}
"""Name of a configuration of the package → a release whose labels it takes"""
LARGEST_DISTANCE = 373.0
"""mm, what the package counts where HD95 is infinite"""
SMALL_LESION = 20.0
"""mm³, and the smallest Dice of a lesion that is found: the defaults of `brats-parse-metrics mets`"""
FOUND_LESION = 0.1

EMPTY_REGION_RULE = (
    f"A region that neither truth nor prediction has is not scored. Where one of them lacks it, or they have no voxel "
    f"in common, HD95 is {LARGEST_DISTANCE:g} mm and all others are 0; sensitivity is not defined without truth."
)
LESION_RULE = "Lesion-wise values are means over the lesions that overlap one of the prediction, one to one."
METS_LESION_RULE = (
    f"Lesion-wise values are means over the lesions of {SMALL_LESION:g} mm³ and more; each that is not found and each "
    f"false one counts as 0, and {LARGEST_DISTANCE:g} mm. Without such a lesion in the truth they are not defined."
)
ALL_LESIONS_RULE = (
    "Lesion-wise Dice, all, is a mean over the lesions of truth and prediction: missed and false ones count 0."
)
DISTANCE_RULE = "On the 1 mm grid of BraTS, HD95 is in mm, and NSD allows 0.5 mm between surfaces, lesion-wise 1 mm."


TOLERANCE = 1.0
"""mm, of NSD in labels other than BraTS's"""
RULES_OF_OTHER_LABELS = (
    "A region that neither truth nor prediction has is not scored. Where one of them lacks it, HD95 is the diagonal of "
    "the image and all others are 0.",
    "Surfaces are the outermost voxels of a region, and distances are in mm: HD95 is the larger one of the 95th "
    f"percentiles of both directions, and NSD allows {TOLERANCE:g} mm.",
)


def challenge_for(regions: Collection[str], given: str | None = None) -> str:
    """Challenge whose rules count: the given one, or the first that scores these regions.

    Args:
        regions: short names of BraTS, or names of another data set, for which any challenge will do.

    Raises:
        ConfigurationError: there is no such challenge, or it scores other regions.
    """
    if given is not None and given not in CHALLENGES:
        raise ConfigurationError(f"Challenge {given!r} is not possible: choose from {', '.join(CHALLENGES)}.")
    fitting = [name for name, release in CHALLENGES.items() if release.scored.keys() == set(regions)]
    if given and fitting and given not in fitting:
        raise ConfigurationError(
            f"Challenge {given} does not score {', '.join(regions)}, which the labels are of: choose from "
            f"{', '.join(fitting)}."
        )
    return given or next(iter(fitting or CHALLENGES))


def rules(challenge: str, is_brats: bool = True) -> tuple[str, ...]:
    """Sentences that say how empty regions, lesions and distances count."""
    if not is_brats:
        return RULES_OF_OTHER_LABELS
    return EMPTY_REGION_RULE, METS_LESION_RULE if challenge == "mets" else LESION_RULE, ALL_LESIONS_RULE, DISTANCE_RULE
