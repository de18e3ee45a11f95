"""experiments/pretrained.sh, from an empty folder to the table, against servers of this machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from nnunet_autosam2.dataset_conversion.phantom import write_phantom
from tests.conftest import Hub, serving
from tests.end_to_end.conftest import write_sam2_checkpoint

SCRIPT = Path(__file__).parents[2] / "experiments" / "pretrained.sh"
TINY = [
    "--device", "cpu", "--num-folds", "4", "--training-cases", "2,all", "--spacing", "1", "1", "1",
    "--patch-size", "24", "32", "32", "--features", "4", "8", "--epochs", "2", "--iterations", "2",
    "--val-iterations", "1", "--upgrade-epochs", "1", "--sam2-image-size", "64", "--processes", "1",
    "--augmentation-processes", "0",
]  # fmt: skip
PATCH_EMBEDDING = "image_encoder.trunk.patch_embed.proj.weight"
"""A weight of SAM2 that stays as it is in a training"""
TASK = "Task01_BrainTumour"
ARMS = (
    "nnU-Net",
    "nnU-Net, frozen, SAM2 on it",
    "the same, SAM2's weights random",
    "nnU-Net, then the same without SAM2",
)


def variables(**more: str) -> dict[str, str]:
    ours = ("HF_", "AUTOSAM2_", "nnUNet_", "TASK01_", "FREE_GB")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**inherited, "PATH": path, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "FREE_GB": "0", **more}


def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], env=variables(**more), capture_output=True, text=True, check=False)


def refused(*words: str | Path, **more: str) -> str:
    done = run(*words, **more)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture
def archive() -> Iterator[Hub]:
    with serving() as server:
        server.path = f"/{TASK}.tar"
        yield server


def of_archive(archive: Hub) -> dict[str, str]:
    return {
        "TASK01_URL": f"http://127.0.0.1:{archive.server_port}{archive.path}",
        "TASK01_MD5": hashlib.md5(archive.content).hexdigest(),
    }


def test_a_dry_run_tells_all_and_touches_nothing(tmp_path: Path):
    told = run("--dry-run", tmp_path / "new", FREE_GB="40")
    assert (told.returncode, told.stderr) == (0, "")
    assert not (tmp_path / "new").exists()
    for command in ("curl ", "tar ", "autosam2 weights get", "python -m experiments.experiment "):
        assert f"    $ {command}" in told.stdout
    assert "16.4 h  in all" in told.stdout
    assert "All takes 40 GB; 0 are there" in told.stdout
    for cases in (20, 100, 387):
        assert f"nnU-Net, {cases} cases, 1000 epochs" in told.stdout
        assert f"SAM2's weights random, {cases} cases, 50 epochs" in told.stdout


def test_archive_and_checksum_are_monais():
    """Read, and not imported, which takes many seconds."""
    datasets = (Path(find_spec("monai").origin).parent / "apps" / "datasets.py").read_text(encoding="utf-8")
    script = SCRIPT.read_text(encoding="utf-8")
    for variable in ("TASK01_URL", "TASK01_MD5"):
        (default,) = re.findall(rf"\{{{variable}:-(\S+)\}}", script)
        assert f'"{TASK}": "{default}"' in datasets


def test_options_replace_those_of_the_script_in_the_estimate(tmp_path: Path):
    told = run(tmp_path / "new", "--dry-run", "--epochs", "250", "--training-cases", "50")
    assert "nnU-Net, 50 cases, 250 epochs" in told.stdout
    assert "387 cases" not in told.stdout
    wrong = run(tmp_path / "new", "--epochs", "none")
    assert wrong.returncode
    assert "--epochs" in wrong.stderr
    assert not (tmp_path / "new").exists()


def test_without_a_folder():
    assert "FOLDER is missing" in refused()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path: Path):
    assert "torch finds no GPU" in refused(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_room_on_the_disk(tmp_path: Path):
    assert "and 1000000000 are needed" in refused(tmp_path / "new", *TINY, FREE_GB="1000000000")
    assert not (tmp_path / "new").exists()


def test_two_in_one_folder(tmp_path: Path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"{tmp_path} is in use" in refused(tmp_path, *TINY)


def test_an_archive_of_another_checksum_is_refused_and_removed(tmp_path: Path, archive: Hub):
    given = of_archive(archive)
    archive.content = b"<html>Not here</html>"
    line = refused(tmp_path, *TINY, **given)
    assert f"its MD5 is not {given['TASK01_MD5']}" in line
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def test_what_cannot_be_downloaded_says_why_and_how_to_go_on(tmp_path: Path, archive: Hub):
    given = of_archive(archive)
    archive.path = "/elsewhere"
    line = refused(tmp_path, *TINY, **given)
    assert f"{given['TASK01_URL']} cannot be downloaded: The requested URL returned error: 404." in line
    assert "set TASK01_URL to a mirror" in line


def pack(folder: Path) -> bytes:
    """Eight labelled phantoms and one test case, as the Decathlon's archive has them."""
    write_phantom(folder / "phantom", num_cases=9, size=(28, 32, 32), seed=0)
    task = folder / TASK
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (task / name).mkdir(parents=True)
    for number, case in enumerate(sorted((folder / "phantom").iterdir()), 1):
        images = [nibabel.load(case / f"{case.name}_{key}.nii.gz") for key in ("flair", "t1", "t1ce", "t2")]
        stacked = np.stack([np.asanyarray(image.dataobj) for image in images], axis=3).astype(np.float32)
        split = "imagesTr" if number < 9 else "imagesTs"
        target = task / split / f"BRATS_{number:03d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(stacked, images[0].affine), target)
        target.with_name(f"._{target.name}").write_bytes(b"resource fork of macOS")
        if split == "imagesTr":
            of_brats = np.asanyarray(nibabel.load(case / f"{case.name}_seg.nii.gz").dataobj)
            own = np.array([0, 2, 1, 0, 3], np.uint8)[of_brats]  # 1 oedema, 2 not enhanced, 3 enhanced
            nibabel.save(nibabel.Nifti1Image(own, images[0].affine), task / "labelsTr" / target.name)
    (task / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}))
    with tarfile.open(folder / "archive.tar", "w") as archive:
        archive.add(task, TASK)
    return (folder / "archive.tar").read_bytes()


@pytest.mark.slow
@pytest.mark.end_to_end
def test_from_an_empty_folder_to_the_table(tmp_path: Path, archive: Hub, hub: Hub):
    """With a connection that breaks, a training that is killed, and a second start after the end."""
    folder, source = tmp_path / "new", tmp_path / "source"
    archive.content = pack(source)
    archive.breaks_after = len(archive.content) // 2
    hub.content = write_sam2_checkpoint(tmp_path / "sam2.pt").read_bytes()
    given = {**of_archive(archive), **hub.environment, "HF_HOME": str(tmp_path / "hub")}

    first = subprocess.Popen(
        [SCRIPT, folder, *TINY], env=variables(**given), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    trained = folder / "experiment" / "done" / "train_nnunet_fold_0_seed_0"
    while not trained.exists() and first.poll() is None:
        time.sleep(0.5)
    ended = first.returncode
    os.killpg(first.pid, signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert trained.exists(), (ended, output)
    assert archive.starts == [0, len(archive.content) // 2]
    assert not (folder / TASK / "imagesTs").exists()
    assert not (folder / "report.md").exists()

    done = run(folder, *TINY, **given)
    assert done.returncode == 0, done.stderr
    assert "train_nnunet_fold_0_seed_0" not in done.stderr
    assert "train_upgrade_fold_1_seed_0" in done.stderr
    again = run(folder, *TINY, **given)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("train_") == 0
    assert archive.starts == [0, len(archive.content) // 2]
    assert hub.starts == [0]

    report = (folder / "report.md").read_text(encoding="utf-8")
    assert report in again.stdout
    first_line, *lines = report.splitlines()
    assert hashlib.sha256(hub.content).hexdigest() in first_line
    assert first_line.endswith("random ones in the arm “the same, SAM2's weights random”.")
    assert [line for line in lines if line.startswith("## ")][:2] == ["## 2 training cases", "## All training cases"]
    for arm in ARMS:
        assert sum(line.startswith(f"| {arm} | 2 | ") for line in lines) >= 2 * 3
    for reference in ("nnU-Net", "nnU-Net, then the same without SAM2", "the same, SAM2's weights random"):
        for metric in ("Dice", "IoU", "HD95"):
            assert sum(line.startswith(f"| {metric}, less {reference} | cases | WT | TC | ET |") for line in lines) == 2

    experiment = folder / "experiment"
    for arm, pretrained in (("upgrade", True), ("upgrade_untrained", False)):
        (checkpoint,) = (experiment / "results_seed_0").glob(f"*/*__{arm}/fold_0/checkpoint_final.pth")
        trained = torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]
        (name,) = (name for name in trained if name.endswith(PATCH_EMBEDDING))
        given_weights = torch.load(tmp_path / "sam2.pt", weights_only=True)["model"]
        assert torch.equal(trained[name], given_weights[PATCH_EMBEDDING]) == pretrained
    runs = json.loads((experiment / "report.json").read_text())["runs"]
    assert len(runs) == 2 * 4 * 2
    assert all(0 <= each["Dice"]["WT"] <= 1 for each in runs)
    few, every = json.loads((experiment / "preprocessed" / "Dataset040_Experiment" / "splits_final.json").read_text())[
        :2
    ]
    assert (len(few["train"]), len(every["train"]), few["val"]) == (2, 6, every["val"])
    for number in range(1, 9):
        truth = np.asanyarray(
            nibabel.load(source / "phantom" / f"phantom_{number:03d}" / f"phantom_{number:03d}_seg.nii.gz").dataobj
        )
        converted = experiment / "raw" / "Dataset040_Experiment" / "labelsTr" / f"BRATS_{number:03d}.nii.gz"
        regions = np.asanyarray(nibabel.load(converted).dataobj)
        for region, labels in ((1, (1, 2, 4)), (2, (1, 4)), (3, (4,))):
            np.testing.assert_array_equal(regions >= region, np.isin(truth, labels))
