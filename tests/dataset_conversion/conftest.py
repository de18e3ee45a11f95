import shutil
from pathlib import Path

import pytest

from nnunet_autosam2.dataset_conversion.phantom import write_phantom


@pytest.fixture(scope="session")
def phantom_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "brats"
    write_phantom(folder, num_cases=2, size=(24, 26, 28), seed=0)
    return folder


@pytest.fixture
def source(phantom_template: Path, tmp_path: Path) -> Path:
    """`phantom_001` and `phantom_002`, to be changed by the test as it likes."""
    return Path(shutil.copytree(phantom_template, tmp_path / "brats"))


@pytest.fixture
def real_data() -> Path:
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real cases are not in {folder}")
    return folder
