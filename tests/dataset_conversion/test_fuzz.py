"""Files that anyone may have made: whatever the bytes are, a volume comes out or one line that names the file.

Everything that conversion, evaluation and `autosam2 show` read goes through `read_volume`.
"""

from __future__ import annotations

import gzip
import os
import string
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_autosam2.cli.main import main
from nnunet_autosam2.dataset_conversion.nifti import LARGE, Geometry, read_volume
from nnunet_autosam2.errors import DatasetError

HEADER = 352
AFFINE = np.diag([-1.0, -1, 2, 1])
WHOLE = nibabel.Nifti1Image(np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6), AFFINE).to_bytes()
LABELS = nibabel.Nifti1Image(np.resize(np.array([0, 1, 2, 4], np.int16), (4, 5, 6)), AFFINE).to_bytes()
DIMENSIONS, DATA_TYPE, OFFSET = range(40, 56), range(70, 74), range(108, 112)
POSITIONS = st.one_of(*map(st.sampled_from, (DIMENSIONS, DATA_TYPE, OFFSET, range(HEADER), range(len(WHOLE)))))
ANY = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def thorough(short: int, long: int):
    """How many inputs are tried in `make test` and in `make test-slow`."""
    return pytest.mark.parametrize("tries", [short, pytest.param(long, marks=pytest.mark.slow)])


@thorough(300, 30000)
def test_headers_with_other_bytes(tries: int) -> None:
    outcomes = {"read": 0, "refused": 0}

    @settings(ANY, max_examples=tries)
    @given(
        changes=st.lists(st.tuples(POSITIONS, st.integers(0, 255)), min_size=1, max_size=6),
        end=st.one_of(st.none(), st.integers(0, len(WHOLE) - 1)),
        ending=st.sampled_from([".nii", ".nii.gz"]),
    )
    def read(changes: list[tuple[int, int]], end: int | None, ending: str) -> None:
        content = bytearray(WHOLE)
        for position, value in changes:
            content[position] = value
        written = gzip.compress(bytes(content[:end]), 1) if ending == ".nii.gz" else bytes(content[:end])
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"case{ending}"
            file.write_bytes(written)
            tracemalloc.start()
            try:
                said: str | tuple[Geometry, np.ndarray] = read_volume(file)
            except DatasetError as error:
                said = str(error)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2 * LARGE
        if isinstance(said, str):
            outcomes["refused"] += 1
            assert said.startswith(str(file))
            assert "\n" not in said
        else:
            outcomes["read"] += 1
            geometry, voxels = said
            assert voxels.ndim == len(geometry.shape) == 3

    read()
    assert min(outcomes.values()) > 0.05 * tries, outcomes


@thorough(30, 3000)
def test_folders_with_any_names(tries: int) -> None:
    """Conversion writes into its target or ends with an error, and nowhere else in any case."""
    outcomes = {0: 0, 1: 0}
    characters = st.sampled_from(string.ascii_letters[:6] + string.digits[:4] + "._- ~$*é\\")
    name = st.one_of(st.text(characters, min_size=1, max_size=12), st.sampled_from(["BraTS2021_00001", "..a", "-d"]))
    usable = name.filter(lambda text: text.strip(".") != "")

    @settings(ANY, max_examples=tries)
    @given(cases=st.lists(usable, min_size=1, max_size=3, unique=True), dataset=st.one_of(usable, st.just("../out")))
    def convert(cases: list[str], dataset: str) -> None:
        with TemporaryDirectory() as folder:
            root = Path(folder)
            raw, source = root / "raw", root / "source"
            raw.mkdir()
            for case in cases:
                (source / case).mkdir(parents=True)
                for modality in ("flair", "t1", "t1ce", "t2", "seg"):
                    content = LABELS if modality == "seg" else WHOLE
                    (source / case / f"{case}_{modality}.nii").write_bytes(content)
            before = listing(root)
            arguments = ["convert-brats", str(source), "-d", "77", "-n", dataset, "--release", "2018-2021"]
            result = CliRunner().invoke(main, arguments, env={"nnUNet_raw": str(raw)})
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
            outcomes[min(result.exit_code, 1)] += 1
            added = {path for path in listing(root) - before if raw not in path.parents}
            assert not added

    convert()
    assert min(outcomes.values()) > 0.05 * tries, outcomes


def listing(folder: Path) -> set[Path]:
    return {Path(parent) / name for parent, folders, files in os.walk(folder) for name in (*folders, *files)}
