import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from nnunet_autosam2.benchmark.results import read_benchmark
from nnunet_autosam2.cli.main import main
from nnunet_autosam2.dataset_conversion.nifti import read_volume
from nnunet_autosam2.dataset_conversion.predictions import recorded_release
from nnunet_autosam2.errors import AutoSAM2Error, DatasetError
from nnunet_autosam2.evaluation.numbering import numbering_of_dataset
from nnunet_autosam2.support.access import entries, is_data, require_file
from nnunet_autosam2.support.checkpoint import read_torch_file
from nnunet_autosam2.support.plans import read_json


@pytest.mark.parametrize("name", ["._a.nii.gz", ".DS_Store", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "Thumbs.db"])
def test_what_systems_leave_is_not_looked_at(tmp_path: Path, name: str):
    assert not is_data(name)
    for other in (name, "b", "a_seg.nii.gz", "_hidden_not", "@home"):
        (tmp_path / other).touch()
    assert [path.name for path in entries(tmp_path)] == ["@home", "_hidden_not", "a_seg.nii.gz", "b"]


def make_folder(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "image": ("a.nii.gz", read_volume),
    "plans": ("plans.json", read_json),
    "checkpoint": ("checkpoint_final.pth", lambda path: read_torch_file(path, "Expected a checkpoint.")),
    "release": ("dataset.json", lambda path: recorded_release(path.parent)),
    "numbering": ("dataset.json", numbering_of_dataset),
    "benchmark": ("benchmark.json", lambda path: read_benchmark(path.parent)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("make", "expected"),
    [(make_folder, "is a folder"), (os.mkfifo, "is a pipe"), (make_socket, "is a pipe"), (link_to_device, "is a pipe")],
)
def test_what_is_no_file_is_one_line_and_nothing_hangs(
    tmp_path: Path, make: Callable[[Path], object], expected: str, reader: str, capfd: pytest.CaptureFixture[str]
):
    name, read = READERS[reader]
    make(tmp_path / name)
    with pytest.raises(AutoSAM2Error) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} {expected}")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", [["inspect"], ["weights", "verify"]])
def test_commands_do_not_wait_for_a_pipe(tmp_path: Path, command: list[str]):
    os.mkfifo(tmp_path / "weights.pt")
    result = CliRunner().invoke(main, [*command, str(tmp_path / "weights.pt")])
    assert result.exit_code == 1
    assert "weights.pt is a pipe" in result.stderr


@pytest.mark.parametrize("name", [b"caf\xe9.nii.gz", b"a\nb.nii.gz", b"\x1b[2K.nii.gz"])
def test_names_that_are_no_text_are_named(tmp_path: Path, name: bytes):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.touch()
    for look in (require_file, read_volume):
        with pytest.raises(DatasetError) as caught:
            look(path)
        assert str(caught.value).isprintable()
        assert "has a name with control characters or bytes that are not UTF-8: rename it." in str(caught.value)


def test_a_file_and_a_path_where_nothing_is_pass(tmp_path: Path):
    (tmp_path / "脳 1.nii").touch()
    (tmp_path / "link.nii").symlink_to("脳 1.nii")
    for name in ("脳 1.nii", "link.nii", "nothing.nii"):
        require_file(tmp_path / name)
