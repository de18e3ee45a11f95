import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.support import staging
from nnunet_autosam2.support.staging import (
    remove_unfinished,
    replaced_file,
    replaced_folder,
    require_writable,
    resumable_folder,
    staged_folder,
    unfinished_state,
)


def test_the_folder_appears_at_the_end_with_usual_permissions(tmp_path: Path):
    target = tmp_path / "parent" / "target"
    with staged_folder(target) as staged:
        (staged / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    (tmp_path / "usual").mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, DatasetError])
def test_nothing_is_left_after_an_interruption(tmp_path: Path, interruption: type[BaseException]):
    def write() -> None:
        with staged_folder(tmp_path / "target") as staged:
            (staged / "file").touch()
            raise interruption

    with pytest.raises(interruption):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_left_alone(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DatasetError, match="is not empty"), staged_folder(tmp_path):
        pass
    with pytest.raises(DatasetError, match="is a file"), staged_folder(tmp_path / "file"):
        pass
    with pytest.raises(DatasetError, match="cannot be written"), staged_folder(tmp_path / "file" / "below"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_may_be_there(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with staged_folder(tmp_path / "empty") as staged:
        (staged / "file").touch()
    assert (tmp_path / "empty" / "file").exists()


def interrupt(target: Path, state: dict, name: str) -> None:
    def write() -> None:
        with resumable_folder(target, state) as (staged, temporary):
            (temporary / "draft").write_text(name)
            (temporary / "draft").rename(staged / name)
            (temporary / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()


def test_an_interrupted_folder_is_taken_up_again(tmp_path: Path):
    target = tmp_path / "parent" / "target"
    state = {"files": {"a": [1, 2]}, "link": False}
    assert unfinished_state(target) is None
    interrupt(target, state, "first")
    assert not target.exists()
    assert unfinished_state(target) == state
    with resumable_folder(target, state) as (staged, _):
        (staged / "second").touch()
    assert sorted(path.name for path in target.iterdir()) == ["first", "second"]
    assert list(target.parent.iterdir()) == [target]


def test_another_state_starts_anew(tmp_path: Path):
    interrupt(tmp_path / "target", {"files": 1}, "old")
    with resumable_folder(tmp_path / "target", {"files": 2}) as (staged, _):
        assert list(staged.iterdir()) == []
    interrupt(tmp_path / "other", {"files": 1}, "old")
    (tmp_path / ".other_unfinished" / "state.json").write_text("{")
    with resumable_folder(tmp_path / "other", {"files": 1}) as (staged, _):
        assert list(staged.iterdir()) == []


def test_a_target_that_appeared_meanwhile_is_left_alone(tmp_path: Path):
    target = tmp_path / "target"

    def write() -> None:
        with resumable_folder(target, {}):
            target.mkdir()
            (target / "mine").touch()

    with pytest.raises(DatasetError, match="cannot be written"):
        write()
    assert [path.name for path in target.iterdir()] == ["mine"]


@pytest.mark.parametrize("link", ["target", ".target_unfinished", ".target_unfinished/target"])
def test_links_are_not_followed_to_another_place(tmp_path: Path, link: str):
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "target"
    elsewhere.mkdir()
    interrupt(target, {}, "first")
    path = tmp_path / link
    if path.exists():
        shutil.move(path, tmp_path / "aside")
    path.symlink_to(elsewhere)
    with pytest.raises(DatasetError, match=rf"{link} is a link to {elsewhere}"), resumable_folder(target, {}):
        pass
    assert not list(elsewhere.iterdir())


def write_and(path: Path, then: type[BaseException]) -> None:
    with replaced_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        raise then


def test_a_file_is_replaced_once_it_is_whole(tmp_path: Path):
    path = tmp_path / "file[1].pth"
    path.write_text("old")
    for error in (KeyboardInterrupt, OSError):
        with pytest.raises(error):
            write_and(path, error)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
    with replaced_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_have_left_can_be_removed(tmp_path: Path):
    killed = "import sys; from pathlib import Path; from nnunet_autosam2.support.staging import replaced_file\n"
    killed += "with replaced_file(Path(sys.argv[1])) as path: path.touch(); import os; os._exit(1)"
    subprocess.run([sys.executable, "-c", killed, tmp_path / "file"], check=False)
    (left,) = tmp_path.iterdir()
    kept = [tmp_path / ".hidden", tmp_path / ".hidden.json", tmp_path / "debug.1"]
    for path in kept:
        path.touch()
    remove_unfinished(tmp_path)
    assert not left.exists()
    assert sorted(tmp_path.iterdir()) == sorted(kept)


KILLED = """
import sys, time
from pathlib import Path
from nnunet_autosam2.support.staging import replaced_folder
with replaced_folder(Path(sys.argv[1])) as staged:
    (staged / "half").touch()
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writing(target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", KILLED, target], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_process_has_left_goes_with_the_next(tmp_path: Path):
    target = tmp_path / "target"
    process = start_writing(target)
    process.kill()
    process.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {".target_unfinished", ".target.lock"}
    with staged_folder(target) as staged:
        (staged / "whole").touch()
    assert list(tmp_path.iterdir()) == [target]
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_what_was_to_be_replaced_comes_back(tmp_path: Path):
    """Where the process was killed between the two renames."""
    target, replaced = tmp_path / "target", tmp_path / ".target_unfinished" / "replaced"
    replaced.mkdir(parents=True)
    (replaced / "old").touch()

    def fail() -> None:
        with replaced_folder(target):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_two_processes_do_not_write_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(staging, "LOCK_TIMEOUT", 0.3)
    with start_writing(tmp_path / "target") as process:
        with (
            pytest.raises(DatasetError, match=r"Another process writes .*target: wait"),
            staged_folder(tmp_path / "target"),
        ):
            pass
        with staged_folder(tmp_path / "other"):
            pass
        process.kill()


def test_what_another_process_has_finished_meanwhile_is_left_alone(tmp_path: Path):
    """The second one waits for the lock, and then finds the folder."""
    target = tmp_path / "target"
    quick = KILLED.replace("time.sleep(60)", "time.sleep(1)")
    with subprocess.Popen([sys.executable, "-c", quick, target], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(DatasetError, match="target is not empty"), staged_folder(target):
            pass
    assert [path.name for path in target.iterdir()] == ["half"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_somebody_else_has_put_there_is_refused(tmp_path: Path, kind: str):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    interrupt(tmp_path / "target", {}, "first")
    below = tmp_path / ".target_unfinished" / "target" / "folder"
    below.mkdir()
    {"link": lambda path: path.symlink_to(elsewhere), "pipe": os.mkfifo, "folder": Path.mkdir}[kind](below / "x")
    with pytest.raises(DatasetError, match=f"{below / 'x'} is a {kind}"), resumable_folder(tmp_path / "target", {}):
        pass
    if kind == "link":
        with resumable_folder(tmp_path / "target", {}, {"folder/x": str(elsewhere)}):
            pass
        assert (tmp_path / "target" / "folder" / "x").is_symlink()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".target.lock").symlink_to("mine")
    with pytest.raises(DatasetError, match="target cannot be written"), staged_folder(tmp_path / "target"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_places_that_cannot_be_written_are_found_before_the_work(tmp_path: Path):
    (tmp_path / "file").touch()
    require_writable(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for place in (tmp_path / "file" / "below", Path("/proc/new")):
        with pytest.raises(DatasetError, match="cannot be written"):
            require_writable(place)
