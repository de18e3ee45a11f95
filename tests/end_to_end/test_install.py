"""What users get: a wheel by way of a source distribution, and an editable install, by pip into clean environments.

Such an environment has its own copy of nnU-Net, as it was published, and links to all other packages of the environment
of the tests but this one, of which it sees what pip installs alone.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import nnunetv2
import pytest

from nnunet_autosam2 import trainers

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
OVERLAY = Path("nnunetv2", "training", "nnUNetTrainer", "variants", "autosam2")
OURS = ("nnunet_autosam2", "__editable__", "__pycache__")
DISCOVERY = "nnunet_autosam2.support.discovery"
BUILD = "from setuptools import build_meta; build_meta.build_{}(r'{}')"
SEARCH = (
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
    f"print(*[find(name).__name__ for name in {trainers.__all__}])"
)


def run(*command: str | Path, cwd: Path, succeeds: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "nnUNet_", "HF_"))}
    done = subprocess.run(command, cwd=cwd, env={**kept, **changes}, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
    return done


def tracked() -> list[str]:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    return [name for name in listed if os.path.lexists(ROOT / name)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository without what git ignores."""
    folder = tmp_path_factory.mktemp("sources")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


class Distributions(NamedTuple):
    sdist: Path
    wheel: Path


def build(sources: Path, folder: Path, path: str) -> Distributions:
    """As `pip wheel` and `python -m build` do it."""
    folder.mkdir()
    run(sys.executable, "-c", BUILD.format("sdist", folder), cwd=sources, PATH=path)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    run(sys.executable, "-c", BUILD.format("wheel", folder), cwd=folder / sdist.name.removesuffix(".tar.gz"), PATH=path)
    (wheel,) = folder.glob("*.whl")
    return Distributions(sdist, wheel)


@pytest.fixture(scope="module")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return build(sources, tmp_path_factory.mktemp("built") / "dist", os.environ["PATH"])


class Environment(NamedTuple):
    folder: Path

    @property
    def packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.folder), "platbase": str(self.folder)}))

    @property
    def overlay(self) -> Path:
        return self.packages / OVERLAY

    def run(self, name: str, *arguments: str | Path, succeeds: bool = True) -> str:
        return run(self.folder / "bin" / name, *arguments, cwd=self.folder, succeeds=succeeds).stdout

    def pip(self, *arguments: str | Path) -> None:
        self.run("python", "-m", "pip", "--disable-pip-version-check", *arguments)

    def install(self, *what: str | Path) -> None:
        self.pip("install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall", *what)

    def fix(self) -> str:
        """What `autosam2 doctor --fix` says of the overlay."""
        said = self.run("autosam2", "doctor", "--fix", "slice_fraction=0", succeeds=False)  # no folders are set
        (line,) = [line for line in said.splitlines() if line[9:39].strip() == "overlay"]
        return " ".join(line.split())


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment(tmp_path / "environment")
    venv.create(made.folder, with_pip=find_spec("pip") is None, symlinks=True)
    shutil.copytree(nnunetv2.__path__[0], made.packages / "nnunetv2", ignore=shutil.ignore_patterns(OVERLAY.name))
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        here = made.packages / package.name
        if not package.name.startswith(OURS) and package.suffix != ".pth" and not here.exists():
            here.symlink_to(package)
    return made


def contents(wheel: Path) -> set[str]:
    """But for the metadata"""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_sources_and_nothing_else(sources: Path, built: Distributions, tmp_path: Path):
    places = {
        "nnunet_autosam2/": "nnunet_autosam2/",
        "dataset_conversion/": "nnunet_autosam2/dataset_conversion/",
        "overlay/": f"{OVERLAY.as_posix()}/",
    }
    expected = {
        place + name.removeprefix(folder)
        for name in tracked()
        for folder, place in places.items()
        if name.startswith(folder) and not (ROOT / name).is_dir()
    }
    assert "nnunet_autosam2/report/templates/viewer.html" in expected
    assert contents(built.wheel) == expected

    (tmp_path / "bin").mkdir()
    asked, npm = tmp_path / "asked", tmp_path / "bin" / "npm"
    npm.write_text(f"#!/bin/sh\necho >{asked}\n")
    npm.chmod(0o755)
    with_npm = build(sources, tmp_path / "dist", str(tmp_path / "bin"))
    assert contents(with_npm.wheel) == expected
    assert not asked.exists()


def test_a_wheel_works_in_a_clean_environment(environment: Environment, built: Distributions):
    environment.install(built.wheel)
    assert environment.run("python", "-c", SEARCH).split() == trainers.__all__
    assert "convert-brats" in environment.run("autosam2", "--help")
    said = environment.run("autosam2", "doctor", "slice_fraction=0", succeeds=False)  # no folders are set
    assert "2 problems would stop a training." in said
    assert "found by nnU-Net, in nnunet_autosam2.trainers" in said


@pytest.mark.slow
def test_an_editable_install_is_linked_and_a_copy_takes_its_place(
    environment: Environment, sources: Path, built: Distributions, tmp_path: Path
):
    edited = Path(shutil.copytree(sources, tmp_path / "edited", symlinks=True))
    overlay = edited / "overlay"
    environment.install("--editable", edited)
    assert not environment.overlay.exists()
    assert environment.fix() == f"ok overlay linked {environment.overlay} to {overlay}"
    for file in (edited / "nnunet_autosam2" / "trainers" / "variants.py", overlay / "autosam2_trainers.py"):
        file.write_text(f"{file.read_text()}\nprint('edited', {file.name!r})\n")
    said = environment.run("python", "-c", SEARCH)
    assert "edited variants.py" in said
    assert "edited autosam2_trainers.py" in said
    assert said.splitlines()[-1].split() == trainers.__all__

    before = {file.name: file.read_bytes() for file in overlay.glob("*.py")}
    environment.install(built.wheel)
    assert environment.overlay.is_dir()
    assert not environment.overlay.is_symlink()
    assert {file.name: file.read_bytes() for file in overlay.glob("*.py")} == before

    environment.install("--editable", edited)
    assert environment.run("python", "-m", DISCOVERY) == f"linked {environment.overlay} to {overlay}\n"
    environment.pip("uninstall", "--quiet", "--yes", "nnunet-autosam2")
    assert not os.path.lexists(environment.overlay)
    assert {file.name: file.read_bytes() for file in overlay.glob("*.py")} == before


def test_a_clone_without_symbolic_links_says_what_to_do(sources: Path, tmp_path: Path):
    whole = Path(shutil.copytree(sources, tmp_path / "whole", symlinks=True))
    run("git", "init", "--quiet", cwd=whole)
    run("git", "add", "--all", cwd=whole)
    run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "all", cwd=whole)
    clone = tmp_path / "clone"
    run("git", "-c", "core.symlinks=false", "clone", "--quiet", whole, clone, cwd=tmp_path)
    said = run(sys.executable, "-c", BUILD.format("wheel", tmp_path), cwd=clone, succeeds=False)
    assert said.stderr.splitlines()[-1].startswith(
        "nnunet_autosam2/dataset_conversion has to be a link to dataset_conversion/, and this checkout was made "
        "without symbolic links. Run `git config core.symlinks true` and `git checkout -- nnunet_autosam2/dataset_conv"
    )
