from pathlib import Path

from tests.fork_server import run


def test_errors_are_a_line(tmp_path: Path):
    missing = run("autosam2", "postprocess", tmp_path, tmp_path / "out", "--settings", tmp_path / "none.json")
    assert (missing.returncode, missing.stderr) == (1, f"Error: {tmp_path / 'none.json'} does not exist.\n")
    (tmp_path / "other.json").write_text("{}")
    other = run("autosam2", "postprocess", tmp_path, tmp_path / "out", "--settings", tmp_path / "other.json")
    assert other.returncode == 1
    assert other.stderr.endswith("Give the file that autosam2 tune-postprocessing has written.\n")
    assert not (tmp_path / "out").exists()
