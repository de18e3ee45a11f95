import hashlib
import subprocess
from pathlib import Path

from nnunet_autosam2.support.checksum import file_checksum


def test_checksum_of_a_file_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 10**6)
    assert file_checksum(tmp_path / "a") == hashlib.sha256(b"abc" * 10**6).hexdigest()
    printed = subprocess.run(["sha256sum", tmp_path / "a"], capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == file_checksum(tmp_path / "a")
