import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result

from nnunet_autosam2.cli.main import main
from nnunet_autosam2.dataset_conversion.phantom import write_phantom
from tests.fork_server import run

MANY = 30
TARGET = ("-d", "5", "-n", "Phantom")


def variables(raw: Path | None) -> dict[str, str]:
    """With nnU-Net's raw folder at `raw`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    return inherited if raw is None else {**inherited, "nnUNet_raw": str(raw)}


def start(source: Path, raw: Path | None, *options: str) -> subprocess.Popen[str]:
    """`autosam2 convert-brats` with nnU-Net's raw folder at `raw`."""
    script = shutil.which("autosam2", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert script is not None, "autosam2 is not installed"
    command = [script, "convert-brats", str(source), *TARGET, *options]
    return subprocess.Popen(command, env=variables(raw), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def convert(source: Path, raw: Path | None, *options: str, afresh: bool = False) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    return run("autosam2", "convert-brats", source, *TARGET, *options, variables=variables(raw), afresh=afresh)


def run_here(source: Path, output: Path, *options: str) -> Result:
    """The same command in this process, which is quicker."""
    arguments = ["convert-brats", str(source), "-d", "5", "-n", "Phantom", "--output", str(output), *options]
    return CliRunner().invoke(main, arguments)


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "brats"
    write_phantom(folder, num_cases=2, size=(24, 24, 24), seed=0)
    return folder


@pytest.fixture
def source(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "brats"))


def make_many(source: Path) -> None:
    """`MANY` cases, for a conversion that takes its time."""
    for number in range(3, MANY + 1):
        case = source / f"phantom_{number:03d}"
        case.mkdir()
        for file in (source / "phantom_001").iterdir():
            os.link(file, case / file.name.replace("phantom_001", case.name))


@pytest.mark.parametrize(
    ("options", "channels"), [([], "T1, T1ce, T2, Flair"), (["--modalities", "flair,t1ce"], "T1ce, Flair")]
)
def test_converts_and_says_what_it_did(source: Path, tmp_path: Path, options: list[str], channels: str):
    (source / "phantom_002" / "phantom_002_seg.nii.gz").unlink()
    flair = source / "phantom_001" / "phantom_001_flair.nii.gz"
    flair.with_suffix("").write_bytes(gzip.decompress(flair.read_bytes()))
    flair.unlink()
    result = convert(source, tmp_path / "raw", *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "Release: 2018-2021, BraTS 2018-2021 (by names and labels; --release overrides)",
        f"{tmp_path / 'raw' / 'Dataset005_Phantom'}: channels {channels}",
        "Training cases, in imagesTr and labelsTr: 1",
        "Test cases, in imagesTs because they have no segmentation: 1 (phantom_002)",
    ]
    assert len(list(tmp_path.glob("raw/Dataset005_Phantom/images*/*.nii.gz"))) == 2 * len(channels.split(", "))


def test_output_takes_the_place_of_nnunet_raw(source: Path, tmp_path: Path):
    result = convert(source, None, "--output", str(tmp_path / "elsewhere"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "elsewhere" / "Dataset005_Phantom" / "dataset.json").is_file()


def change(file: Path, voxels: Callable[[np.ndarray], np.ndarray], shift: float = 0) -> None:
    image = nibabel.load(file)
    affine = image.affine
    affine[0, 3] += shift
    nibabel.save(nibabel.Nifti1Image(voxels(np.asanyarray(image.dataobj)), affine), file)


def cut_off(case: Path) -> None:
    file = case / f"{case.name}_t1.nii.gz"
    file.write_bytes(file.read_bytes()[:1000])


def crop(case: Path) -> None:
    change(case / f"{case.name}_t2.nii.gz", lambda voxels: voxels[:, :, :-1])


def shift(case: Path) -> None:
    change(case / f"{case.name}_t2.nii.gz", lambda voxels: voxels, shift=1)


def write_nan(case: Path) -> None:
    change(case / f"{case.name}_flair.nii.gz", lambda voxels: np.where(voxels == 0, np.nan, voxels).astype(np.float32))


def write_unknown_label(case: Path) -> None:
    change(case / f"{case.name}_seg.nii.gz", lambda voxels: voxels + np.uint8(1))


def remove_modality(case: Path) -> None:
    (case / f"{case.name}_t2.nii.gz").unlink()


def duplicate(case: Path) -> None:
    shutil.copytree(case, case.parent / "HGG" / case.name)


def empty(case: Path) -> None:
    shutil.rmtree(case)
    case.mkdir()


def write_text(case: Path) -> None:
    (case / f"{case.name}_t1ce.nii.gz").write_text("see the other folder")


def flatten(case: Path) -> None:
    change(case / f"{case.name}_t1.nii.gz", lambda voxels: voxels[:, :, 12])


def make_unreadable(case: Path) -> None:
    """Also for root, who can read what has no permissions."""
    file = case / f"{case.name}_seg.nii.gz"
    file.unlink()
    file.symlink_to("on_a_drive_that_is_not_there")


def blank(case: Path) -> None:
    change(case / f"{case.name}_t1.nii.gz", np.zeros_like)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut_off, "phantom_002_t1.nii.gz cannot be read as NIfTI: Compressed file ended"),
        (crop, "phantom_002_t2.nii.gz does not fit phantom_002_t1.nii.gz: shape (24, 24, 23)"),
        (shift, "phantom_002_t2.nii.gz does not fit phantom_002_t1.nii.gz: origin"),
        (write_nan, "phantom_002_flair.nii.gz has voxels that are infinite or not a number."),
        (write_unknown_label, "phantom_002_seg.nii.gz has labels that BraTS 2018-2021 does not know: 3, 5."),
        (remove_modality, "phantom_002_t2.nii.gz is missing."),
        (duplicate, "HGG/phantom_002/phantom_002_t1.nii.gz; keep one."),
        (empty, "phantom_002 is empty."),
        (write_text, "phantom_002_t1ce.nii.gz cannot be read as NIfTI"),
        (flatten, "phantom_002_t1.nii.gz is not a 3D image: its shape is (24, 24)."),
        (make_unreadable, "phantom_002_seg.nii.gz cannot be read as NIfTI"),
        (blank, "phantom_002_t1.nii.gz is empty: every voxel is 0."),
    ],
)
def test_data_that_cannot_be_used(source: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str):
    """One line that names the file, one with the remedy, and no data set; with --skip-invalid the rest."""
    damage(source / "phantom_002")
    raw = tmp_path / "raw"
    (raw / "Dataset001_Mine" / "imagesTr").mkdir(parents=True)
    before = contents(raw)

    result = run_here(source, raw)

    assert result.exit_code == 1
    assert result.stdout == ""
    problem, remedy = result.stderr[result.stderr.index("Error: ") :].splitlines()
    assert expected in problem
    assert remedy.startswith("Cases that cannot be used: 1. --skip-invalid leaves them out, 1 remain.")
    hidden = raw / ".Dataset005_Phantom_unfinished"
    assert contents(raw).keys() - before.keys() == {str(hidden), str(hidden / "checks.jsonl")}

    result = run_here(source, raw, "--skip-invalid")
    assert result.exit_code == 0, result.stderr
    assert "check:" not in result.stderr
    *_, left_out, reason = result.stdout.splitlines()
    assert left_out == "Left out, with --skip-invalid: 1 (phantom_002)"
    assert reason.startswith("  ")
    assert expected in reason
    assert [file.name for file in raw.glob("Dataset005_Phantom/labelsTr/*")] == ["phantom_001.nii.gz"]


def emptied(source: Path) -> None:
    shutil.rmtree(source)
    source.mkdir()


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda source: shutil.rmtree(source), "brats is not a folder."),
        (emptied, "brats holds no case: expected <case>/<case>_{t1,"),
        (lambda source: (source.parent / "raw" / "Dataset005_Phantom").mkdir(), "Dataset005_Phantom exists: remove it"),
    ],
)
def test_folders_that_cannot_be_used(source: Path, tmp_path: Path, prepare: Callable[[Path], object], expected: str):
    (tmp_path / "raw").mkdir()
    prepare(source)
    before = contents(tmp_path / "raw")
    result = run_here(source, tmp_path / "raw")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert expected in line
    assert contents(tmp_path / "raw") == before


def test_an_error_of_the_installed_command(source: Path, tmp_path: Path):
    remove_modality(source / "phantom_002")
    result = convert(source, tmp_path / "raw", afresh=True)
    assert (result.returncode, result.stdout) == (1, "")
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("check:")]
    assert lines == [
        f"Error: {source}/phantom_002/phantom_002_t2.nii.gz is missing.",
        "Cases that cannot be used: 1. --skip-invalid leaves them out, 1 remain. "
        "--modalities t1,t1ce,flair takes what every case has. What was found is kept in "
        f"{tmp_path}/raw/.Dataset005_Phantom_unfinished: files that stay as they are are not read again.",
    ]


def test_unset_raw_folder_and_impossible_options(source: Path, tmp_path: Path):
    installed = convert(source, None)
    assert (installed.returncode, installed.stderr[:28]) == (1, "Error: nnUNet_raw is not set")
    result = run_here(source, tmp_path / "raw", "--modalities", "t1,dwi")
    assert (result.exit_code, "'dwi'" in result.stderr) == (1, True)
    result = run_here(source, tmp_path / "raw", "--modalities", "t1,flair,t1")
    assert (result.exit_code, result.stderr) == (1, "Error: --modalities: t1 is named twice: name it once.\n")
    assert run_here(source, tmp_path / "raw", "--release", "2012").exit_code == 2
    assert not (tmp_path / "raw").exists()


def test_goes_on_after_it_was_killed(source: Path, tmp_path: Path):
    make_many(source)
    unfinished = tmp_path / "raw" / ".Dataset005_Phantom_unfinished" / "Dataset005_Phantom"
    process = start(source, tmp_path / "raw")
    while not list(unfinished.glob("labelsTr/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((tmp_path / "raw").glob("Dataset*"))
    finished = {file.name: file.stat().st_mtime_ns for file in unfinished.glob("*/*")}

    result = run_here(source, tmp_path / "raw")

    assert result.exit_code == 0, result.stderr
    assert "check:" not in result.stderr
    (folder,) = (tmp_path / "raw").iterdir()
    files = {file.name: file.stat().st_mtime_ns for file in folder.glob("*/*")}
    assert len(files) == MANY * 5 > len(finished)
    assert {name: files[name] for name in finished} == finished
    assert all(nibabel.load(file).shape == (24, 24, 24) for file in folder.glob("*/*"))


@pytest.mark.parametrize("skip", [[], ["--skip-invalid"]])
def test_what_systems_and_tools_leave_drops_no_case(source: Path, tmp_path: Path, skip: list[str]):
    for folder in ("__MACOSX/phantom_001", "phantom_001/@eaDir", "@eaDir/phantom_002", ".ipynb_checkpoints", "logs",
                   "HGG/phantom_001", ".trash/phantom_002", "backup/phantom_002"):  # fmt: skip
        (source / folder).mkdir(parents=True)
    for file in source.glob("phantom_*/phantom_*.nii.gz"):
        (file.parent / f"._{file.name}").write_bytes(b"\0\5\x16\7")
    (source / "backup" / "phantom_002" / "._phantom_002_t1.nii.gz").touch()
    shutil.copytree(source / "phantom_001", source / "__MACOSX" / "phantom_001", dirs_exist_ok=True)
    shutil.copytree(source / "phantom_002", source / ".trash" / "phantom_002", dirs_exist_ok=True)
    result = run_here(source, tmp_path / "raw", *skip)
    assert result.exit_code == 0, result.stderr
    assert "in imagesTr and labelsTr: 2" in result.stdout
    (empty,) = (line for line in result.stdout.splitlines() if line.startswith("Empty folders, which are no cases: "))
    assert [Path(name).relative_to(source).as_posix() for name in empty[empty.index("(") + 1 : -1].split(", ")] == [
        "logs", "HGG/phantom_001", "backup/phantom_002",
    ]  # fmt: skip


def test_one_dataset_id_is_for_one_process(source: Path, tmp_path: Path):
    """Also under two names; the other one is refused before it checks anything."""
    raw = tmp_path / "raw"
    raw.mkdir()
    holder = "import sys, time; from pathlib import Path; from nnunet_autosam2.support.staging import locked\n"
    holder += "with locked(Path(sys.argv[1]), 'Dataset005'): print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", holder, raw / "Dataset005_Other"], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        result = run_here(source, raw)
        other.kill()
    assert result.exit_code == 1
    assert "check:" not in result.stderr
    assert f"Another process writes {raw / 'Dataset005'}: wait until it is done" in result.stderr
    assert run_here(source, raw).exit_code == 0  # the lock went with its process
    assert [path.name for path in raw.iterdir()] == ["Dataset005_Phantom"]


def test_two_conversions_at_once_make_one_data_set(source: Path, tmp_path: Path):
    raw = tmp_path / "raw"
    make_many(source)
    processes = [start(source, raw, "-n", name) for name in ("One", "Two", "Three")]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1, 1], said
    (folder,) = raw.iterdir()
    assert (folder / "dataset.json").is_file()
    refused = [text.splitlines()[-1] for process, text in zip(processes, said, strict=True) if process.returncode]
    assert all("Another process writes" in line or "belongs to" in line for line in refused), refused


def test_a_target_that_cannot_be_written_is_found_first(source: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "raw", Path("/proc/raw"), Path("/dev/full/raw")):
        result = run_here(source, place)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()  # and so no bar of the checks
        assert line.startswith(f"Error: {place / 'Dataset005_Phantom'} cannot be written: ")


def test_checks_that_were_killed_go_on(source: Path, tmp_path: Path):
    make_many(source)
    kept = tmp_path / "raw" / ".Dataset005_Phantom_unfinished" / "checks.jsonl"
    process = start(source, tmp_path / "raw")
    while not (kept.is_file() and kept.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    checked = kept.read_text().count("\n")
    result = run_here(source, tmp_path / "raw")
    assert result.exit_code == 0, result.stderr
    assert checked == MANY or f"| {MANY - checked}/{MANY - checked} [" in result.stderr
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["Dataset005_Phantom"]


def unfinished_conversion(source: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    """Ends before dataset.json is written."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nnunet_autosam2.dataset_conversion.brats.generate_dataset_json", full)
        assert run_here(source, raw, *options).exit_code == 1
    return raw / ".Dataset005_Phantom_unfinished" / "Dataset005_Phantom"


@pytest.mark.parametrize("options", [[], ["--link"]])
@pytest.mark.parametrize("planted", ["labelsTr", "imagesTr/phantom_001_0000.nii.gz", "dataset.json", "labelsTr/x"])
def test_links_in_an_unfinished_conversion_lead_nowhere(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str, options: list[str]
):
    staged = unfinished_conversion(source, tmp_path / "raw", monkeypatch, *options)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dataset.json").write_text("mine")
    path = staged / planted
    if path.exists():
        path.rename(tmp_path / "aside")
    path.symlink_to(elsewhere / "dataset.json" if planted.endswith(("json", "gz")) else elsewhere)
    result = run_here(source, tmp_path / "raw", *options)
    assert result.exit_code == 1
    assert f"{path} is a link to {elsewhere}" in result.stderr
    assert [(file.name, file.read_text()) for file in elsewhere.iterdir()] == [("dataset.json", "mine")]
    assert not (tmp_path / "raw" / "Dataset005_Phantom").exists()
    path.unlink()
    assert run_here(source, tmp_path / "raw", *options).exit_code == 0


@pytest.mark.parametrize("planted", ["dataset.json", "../state.json", "../checks.jsonl"])
def test_files_that_somebody_else_has_linked_are_not_written_to(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
):
    staged = unfinished_conversion(source, tmp_path / "raw", monkeypatch)
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"mine": 1}')
    (staged / planted).unlink(missing_ok=True)
    os.link(foreign, staged / planted)
    assert run_here(source, tmp_path / "raw").exit_code == 0
    assert foreign.read_text() == '{"mine": 1}'
