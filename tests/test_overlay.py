"""What nnU-Net's own search finds in an installed copy, each time in a process that has imported nothing of ours."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnunet_autosam2 import trainers
from tests.fork_server import ForkServer, run

Search = Callable[..., subprocess.CompletedProcess[str]]
OVERLAY_FOLDER = Path(__file__).parents[1] / "overlay"
OVERLAY_MODULE = "nnunetv2.training.nnUNetTrainer.variants.autosam2.autosam2_trainers"
SEARCH = "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("nnUNet_extTrainer", "PYTHONPATH")}


@pytest.fixture(scope="module")
def nnunet_alone(variables: dict[str, str]) -> Iterator[ForkServer]:
    """Has imported what a training of nnU-Net imports before its search, and nothing of ours."""
    server = ForkServer(variables, ["nnunetv2.run.run_training"])
    yield server
    server.close()


@pytest.fixture
def search(tmp_path: Path, variables: dict[str, str], nnunet_alone: ForkServer) -> Search:
    """Runs a program."""

    def run_program(code: str, afresh: bool = False) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "program.py"
        program.write_text(code)
        if afresh:
            return run(sys.executable, program, variables=variables, folder=tmp_path, afresh=True)
        return run(program, variables=variables, folder=tmp_path, server=nnunet_alone)

    return run_program


def test_every_trainer_is_found_without_an_environment_variable(search: Search):
    done = search(
        f"{SEARCH}for name in {trainers.__all__}:\n    print(find(name).__name__)\n"
        "find('nnUNetTrainerAutoSAM2_Nothing')",
        afresh=True,
    )
    assert done.stdout.split() == trainers.__all__, done.stderr
    assert "Could not find requested nnunet trainer nnUNetTrainerAutoSAM2_Nothing" in done.stderr


def test_searching_for_another_trainer_imports_nothing_of_ours(search: Search):
    done = search(
        f"{SEARCH}import sys\n"
        "assert find('nnUNetTrainerAdam').__name__ == 'nnUNetTrainerAdam'\n"
        f"assert {OVERLAY_MODULE!r} in sys.modules, 'the search did not pass our module'\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('nnunet_autosam2', 'sam2')])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_broken_plugin_harms_no_other_trainer_and_says_why(tmp_path: Path, search: Search):
    package = tmp_path / "path" / "nnunet_autosam2"
    package.mkdir(parents=True)
    faults = ("raise ImportError('libfoo')", "raise AttributeError('libfoo')", "raise OSError('libfoo')", "= libfoo")
    done = search(
        f"{SEARCH}import sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(package.parent)!r})\n"
        "assert find('nnUNetTrainerAdam').__name__ == 'nnUNetTrainerAdam'\n"
        f"for fault in {faults}:\n"
        f"    Path({str(package / '__init__.py')!r}).write_text(fault)\n"
        "    try:\n"
        "        find('nnUNetTrainerAutoSAM2')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n",
    )
    assert done.returncode == 0, done.stderr
    causes = done.stdout.splitlines()
    assert [cause.split()[0] for cause in causes] == ["ImportError", "ImportError", "OSError", "SyntaxError"]
    assert all("libfoo" in cause for cause in causes[:3])


def test_editable_installs_are_served_as_external_trainers(search: Search):
    # As nnU-Net searches each folder of nnUNet_extTrainer.
    done = search(
        "import pickle, sys\n"
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class\n"
        f"folder = {str(OVERLAY_FOLDER)!r}\n"
        "for name in ('nnUNetTrainerAutoSAM2', 'nnUNetTrainerAutoSAM2_60'):\n"
        "    found = recursive_find_python_class(folder, name, None, folder, False, True)\n"
        "    assert pickle.loads(pickle.dumps(found)) is found, 'needed by worker processes'\n"
        "    assert folder not in sys.path and 'autosam2_trainers' not in sys.modules\n"
        "    print(found.__name__)\n"
        "assert recursive_find_python_class(folder, 'nnUNetTrainerElse', None, folder, False, True) is None"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["nnUNetTrainerAutoSAM2", "nnUNetTrainerAutoSAM2_60"]
