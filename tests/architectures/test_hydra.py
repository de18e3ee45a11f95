"""Within applications of Hydra, as most frameworks around SAM2 are: their own configuration stays theirs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = """
def build():
    from nnunet_autosam2 import AutoSAM2
    return AutoSAM2(num_classes=4, sam2_checkpoint="random", sam2_image_size=64)
"""
APPLICATION = """
import hydra
@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config):
    build()
    assert hydra.compose(config_name="config").mine == config.mine == 1
    print("built")
main()
"""
BEFORE = {
    "within an application": "",
    "imported before": (
        "from nnunet_autosam2 import AutoSAM2, AutoSAM2Loss\n"
        "from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2\n"
    ),
}
COMPOSED = """
import hydra
from hydra.core.global_hydra import GlobalHydra
with hydra.initialize_config_dir(config_dir=r"{folder}", version_base=None):
    before = GlobalHydra.instance().hydra
    build()
    assert GlobalHydra.instance().hydra is before
    assert hydra.compose(config_name="config").mine == 1
build()  # after it has gone
from sam2.build_sam import build_sam2
print("built")
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    (folder / "conf").mkdir()
    (folder / "conf" / "config.yaml").write_text("mine: 1\n")
    (folder / "application.py").write_text(code)
    environment = {**os.environ, "HYDRA_FULL_ERROR": "1"}
    return subprocess.run(
        [sys.executable, "application.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("before", BEFORE)
def test_the_network_is_built(tmp_path, before):
    result = run(BEFORE[before] + BUILD + APPLICATION, tmp_path)
    assert result.stdout.strip().endswith("built"), result.stderr


def test_the_state_of_hydra_is_left_alone(tmp_path):
    result = run(BUILD + COMPOSED.replace("{folder}", str(tmp_path / "conf")), tmp_path)
    assert result.stdout.strip().endswith("built"), result.stderr
