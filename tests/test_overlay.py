"""What nnU-Net's own search finds in an installed copy, each time in a fresh process as its commands run it."""

import os
import subprocess
import sys
from pathlib import Path

from nnunet_autosam2 import trainers

OVERLAY_FOLDER = Path(__file__).parents[1] / "overlay"
OVERLAY_MODULE = "nnunetv2.training.nnUNetTrainer.variants.autosam2.autosam2_trainers"
SEARCH = "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"


def run(code: str, folder: Path, python_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("nnUNet_extTrainer", "PYTHONPATH")}
    if python_path:
        environment["PYTHONPATH"] = str(python_path)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_every_trainer_is_found_without_an_environment_variable(tmp_path):
    search = run(
        f"{SEARCH}for name in {trainers.__all__}:\n    print(find(name).__name__)\n"
        "find('nnUNetTrainerAutoSAM2_Nothing')",
        tmp_path,
    )
    assert search.stdout.split() == trainers.__all__, search.stderr
    assert "Could not find requested nnunet trainer nnUNetTrainerAutoSAM2_Nothing" in search.stderr


def test_searching_for_another_trainer_imports_nothing_of_ours(tmp_path):
    search = run(
        f"{SEARCH}import sys\n"
        "assert find('nnUNetTrainerAdam').__name__ == 'nnUNetTrainerAdam'\n"
        f"assert {OVERLAY_MODULE!r} in sys.modules, 'the search did not pass our module'\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('nnunet_autosam2', 'sam2')])",
        tmp_path,
    )
    assert search.returncode == 0, search.stderr
    assert search.stdout.strip() == "[]"


def test_a_broken_plugin_harms_no_other_trainer_and_says_why(tmp_path):
    package = tmp_path / "path" / "nnunet_autosam2"
    package.mkdir(parents=True)
    faults = ("raise ImportError('libfoo')", "raise AttributeError('libfoo')", "raise OSError('libfoo')", "= libfoo")
    search = run(
        f"{SEARCH}from pathlib import Path\n"
        "assert find('nnUNetTrainerAdam').__name__ == 'nnUNetTrainerAdam'\n"
        f"for fault in {faults}:\n"
        f"    Path({str(package / '__init__.py')!r}).write_text(fault)\n"
        "    try:\n"
        "        find('nnUNetTrainerAutoSAM2')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n",
        tmp_path,
        python_path=tmp_path / "path",
    )
    assert search.returncode == 0, search.stderr
    causes = search.stdout.splitlines()
    assert [cause.split()[0] for cause in causes] == ["ImportError", "ImportError", "OSError", "SyntaxError"]
    assert all("libfoo" in cause for cause in causes[:3])


def test_editable_installs_are_served_as_external_trainers(tmp_path):
    # As nnU-Net searches each folder of nnUNet_extTrainer.
    search = run(
        "import pickle, sys\n"
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class\n"
        f"folder = {str(OVERLAY_FOLDER)!r}\n"
        "for name in ('nnUNetTrainerAutoSAM2', 'nnUNetTrainerAutoSAM2_60'):\n"
        "    found = recursive_find_python_class(folder, name, None, folder, False, True)\n"
        "    assert pickle.loads(pickle.dumps(found)) is found, 'needed by worker processes'\n"
        "    assert folder not in sys.path and 'autosam2_trainers' not in sys.modules\n"
        "    print(found.__name__)\n"
        "assert recursive_find_python_class(folder, 'nnUNetTrainerElse', None, folder, False, True) is None",
        tmp_path,
    )
    assert search.returncode == 0, search.stderr
    assert search.stdout.split() == ["nnUNetTrainerAutoSAM2", "nnUNetTrainerAutoSAM2_60"]
