"""How a family of BraTS releases names files and labels. A further release is a further constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class BratsLayout:
    """Files are `<case>/<case>_<suffix>` with one of `ENDINGS`."""

    release: str
    modalities: Mapping[str, str]
    """File suffix → channel name, in the order of nnU-Net's channels."""
    segmentation: str
    labels: tuple[int, ...]

    def files(self, folder: Path) -> dict[str, list[Path]]:
        """Suffix → the files of the case `folder` that carry it, none or one in a sound data set."""
        names = {
            suffix: [folder / f"{folder.name}_{suffix}{ending}" for ending in ENDINGS]
            for suffix in (*self.modalities, self.segmentation)
        }
        return {suffix: [file for file in files if file.is_file()] for suffix, files in names.items()}


BRATS_2018_2021 = BratsLayout(
    release="BraTS 2018-2021",
    modalities={"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "Flair"},
    segmentation="seg",
    labels=(0, 1, 2, 4),
)
