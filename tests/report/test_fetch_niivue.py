import subprocess
import sys

from nnunet_autosam2.report import fetch_niivue


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", fetch_niivue.__file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    before = fetch_niivue.BUNDLE.read_bytes()
    archive = tmp_path / "niivue.tgz"
    archive.write_bytes(b"something else")
    result = run(str(archive))
    assert result.returncode == 1
    assert result.stderr == f"Error: {archive} is not {fetch_niivue.PACKAGE}: its SHA-512 differs.\n"
    assert fetch_niivue.BUNDLE.read_bytes() == before


def test_says_that_npm_is_missing(tmp_path):
    result = run(PATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith("Error: npm is missing: install Node.js, or give a file")
    assert len(result.stderr.splitlines()) == 1


def test_says_that_the_archive_is_missing(tmp_path):
    result = run(str(tmp_path / "nowhere.tgz"))
    assert result.returncode == 1
    assert result.stderr == f"Error: {tmp_path / 'nowhere.tgz'} cannot be read: No such file or directory.\n"
