"""The releases of BraTS: how each names its files, and what its labels mean. A further release is a further row.

Labels and regions after the challenges' own evaluation (https://github.com/BrainLesion/BraTS_evaluation, configs) and

- 2018-2021: Baid et al., https://arxiv.org/abs/2107.02314
- GLI 2024, after treatment: de Verdier et al., https://arxiv.org/abs/2405.18368
- MET 2023: Moawad et al., https://arxiv.org/abs/2306.00838; 2025, after treatment too: https://arxiv.org/abs/2504.12527
- PED 2023, three labels: Kazerooni et al., https://arxiv.org/abs/2305.17033; from 2024, four:
  https://arxiv.org/abs/2404.15009
- MEN 2023: LaBella et al., https://arxiv.org/abs/2305.07642
- MEN-RT 2024, radiotherapy planning: LaBella et al., https://arxiv.org/abs/2405.18383
- SSA 2023: Adewole et al., https://arxiv.org/abs/2305.19369
- Decathlon: `dataset.json` of Task01_BrainTumour, Antonelli et al., https://doi.org/10.1038/s41467-022-30695-9
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nnunet_autosam2.dataset_conversion.regions import CORE, ENHANCING, FOURTH, OEDEMA, REGIONS, TARGET, Region
from nnunet_autosam2.errors import ConfigurationError

THREE_REGIONS = dict(REGIONS.values())
REGIONS_WITH_CAVITY = {**THREE_REGIONS, "resection cavity": (FOURTH,)}
REGIONS_WITH_CYSTS = {
    **{name: labels if labels == (ENHANCING,) else (*labels, FOURTH) for name, labels in REGIONS.values()},
    "cystic component": (FOURTH,),
}

LABELS_2018 = {0: 0, 1: CORE, 2: OEDEMA, 4: ENHANCING}
LABELS_2023 = {0: 0, 1: CORE, 2: OEDEMA, 3: ENHANCING}
LABELS_WITH_CAVITY = {**LABELS_2023, 4: FOURTH}
LABELS_WITH_CYSTS = {0: 0, 1: ENHANCING, 2: CORE, 3: FOURTH, 4: OEDEMA}
LABELS_TARGET = {0: 0, 1: 1}
LABELS_DECATHLON = {0: 0, 1: OEDEMA, 2: CORE, 3: ENHANCING}

MODALITIES_2018 = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "Flair"}
MODALITIES_2023 = {"t1n": "T1", "t1c": "T1ce", "t2w": "T2", "t2f": "Flair"}
MODALITIES_PLANNING = {"t1c": "T1ce"}
MODALITIES_DECATHLON = {"t1w": "T1", "t1gd": "T1ce", "t2w": "T2", "flair": "Flair"}


@dataclass(frozen=True)
class Release:
    """Files are `<case>/<case><separator><suffix>.nii.gz`, or with `stack` those of the Decathlon."""

    name: str
    title: str
    case_pattern: str
    """Regular expression that the name of every case matches."""
    modalities: Mapping[str, str]
    """File suffix → channel name, in the order of nnU-Net's channels, which is the same wherever there are four."""
    labels: Mapping[int, int]
    """Label of the release → nnU-Net's, one to one."""
    regions: Mapping[str, tuple[int, ...]]
    """Name → nnU-Net's labels; region number i is written as label i where no later region covers it."""
    separator: str = "-"
    segmentation: str = "seg"
    """File suffix"""
    stack: tuple[str, ...] = ()
    """Modalities along the fourth axis of an image; empty where each has a file of its own."""

    @property
    def original(self) -> dict[int, int]:
        """nnU-Net's label → the release's."""
        return {nnunet: own for own, nnunet in self.labels.items()}

    @property
    def scored(self) -> dict[str, Region]:
        """Short name → region, of those that its challenge scores and we do."""
        return {short: region for short, region in {**REGIONS, **TARGET}.items() if region.name in self.regions}

    @property
    def layout(self) -> tuple[str, str, tuple[str, ...]]:
        return self.separator, self.segmentation, self.stack


RELEASES = {
    release.name: release
    for release in (
        Release("2018-2021", "BraTS 2018-2021", r".+", MODALITIES_2018, LABELS_2018, THREE_REGIONS, separator="_"),
        Release("2023-gli", "BraTS 2023 GLI", r"BraTS-GLI-\d+-0\d\d", MODALITIES_2023, LABELS_2023, THREE_REGIONS),
        Release(
            "2024-gli", "BraTS 2024 GLI", r"BraTS-GLI-\d+-\d+", MODALITIES_2023, LABELS_WITH_CAVITY, REGIONS_WITH_CAVITY
        ),
        Release("2023-met", "BraTS 2023 MET", r"BraTS-MET-\d+-\d+", MODALITIES_2023, LABELS_2023, THREE_REGIONS),
        Release(
            "2025-met", "BraTS 2025 MET", r"BraTS-MET-\d+-\d+", MODALITIES_2023, LABELS_WITH_CAVITY, REGIONS_WITH_CAVITY
        ),
        Release("2023-ped", "BraTS 2023 PED", r"BraTS-PED-\d+-\d+", MODALITIES_2023, LABELS_2023, THREE_REGIONS),
        Release(
            "2024-ped", "BraTS 2024 PED", r"BraTS-PED-\d+-\d+", MODALITIES_2023, LABELS_WITH_CYSTS, REGIONS_WITH_CYSTS
        ),
        Release("2023-men", "BraTS 2023 MEN", r"BraTS-MEN-\d+-\d+", MODALITIES_2023, LABELS_2023, THREE_REGIONS),
        Release(
            "2024-men-rt",
            "BraTS 2024 MEN-RT",
            r"BraTS-MEN-RT-\d+-\d+",
            MODALITIES_PLANNING,
            LABELS_TARGET,
            dict(TARGET.values()),
            separator="_",
            segmentation="gtv",
        ),
        Release("2023-ssa", "BraTS 2023 SSA", r"BraTS-SSA-\d+-\d+", MODALITIES_2023, LABELS_2023, THREE_REGIONS),
        Release("2024-goat", "BraTS 2024 GoAT", r"BraTS-GoAT-\d+", MODALITIES_2023, LABELS_2023, THREE_REGIONS),
        Release(
            "decathlon",
            "Decathlon Task01_BrainTumour",
            r"BRATS_\d+",
            MODALITIES_DECATHLON,
            LABELS_DECATHLON,
            THREE_REGIONS,
            stack=("flair", "t1w", "t1gd", "t2w"),
        ),
    )
}


def release_named(name: str) -> Release:
    if name not in RELEASES:
        raise ConfigurationError(f"Release {name!r} is not possible: choose from {', '.join(RELEASES)}.")
    return RELEASES[name]


def release_by_labels(candidates: Sequence[Release], labels: Sequence[Collection[float]]) -> Release:
    """Release whose labels explain the most cases, of equals the earliest: no fourth label seen, none assumed.

    Of 2023-gli and 2024-gli:

        {0, 1, 2, 3}, {0}       → 2023-gli
        {0, 1, 2, 3}, {0, 4}    → 2024-gli

    Args:
        labels: those that occur, case by case.

    Raises:
        ConfigurationError: another one explains as many cases, and gives the same labels another meaning.
    """

    def explained(release: Release) -> int:
        return sum(release.labels.keys() >= set(seen) for seen in labels)

    best = max(candidates, key=explained)
    occurring = [label for label in best.labels if any(label in seen for seen in labels)]
    for other in candidates:
        if explained(other) == explained(best) and any(
            other.labels.get(label) != best.labels[label] for label in occurring
        ):
            raise ConfigurationError(
                f"The files fit {best.title} and {other.title}, where the same labels mean different things: "
                f"give --release {best.name} or --release {other.name}."
            )
    return best
