import subprocess
import sys

POOLS = """
import multiprocessing
from nnunet_autosam2.cli.signals import end_in_order
with end_in_order():
    for _ in range(30):
        with multiprocessing.get_context("fork").Pool(8):
            pass
"""


def test_pools_of_others_can_be_ended_as_soon_as_they_are_started(tmp_path):
    """nnU-Net lists files with such a pool: a worker for which SIGTERM came too early was waited for without end."""
    subprocess.run([sys.executable, "-c", POOLS], cwd=tmp_path, check=True, timeout=60)
