"""NiiVue's archive, from a registry on this machine; its content is the real one, fetched on first use."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nnunet_autosam2.errors import InstallationError
from nnunet_autosam2.report import niivue
from nnunet_autosam2.report.niivue import ARCHIVE, ENVIRONMENT_VARIABLE, PATH_IN_REGISTRY, cached_archive, load_niivue

LENGTH = "from nnunet_autosam2.report.niivue import load_niivue; print(len(load_niivue()))"


class Registry(ThreadingHTTPServer):
    """Gives `content` for NiiVue's address alone, and counts."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = content
        self.requests = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Answer(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        found = self.path == f"/{PATH_IN_REGISTRY}"
        self.server.requests += found
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(self.server.content if found else b"")

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_niivue()
    return Path(shutil.copy(cached_archive(), tmp_path_factory.mktemp("npm") / ARCHIVE))


@pytest.fixture
def registry(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The one that is asked, with an empty cache beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with Registry(archive.read_bytes()) as running:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", running.address)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def cached_files() -> list[str]:
    return [path.name for path in cached_archive().parent.iterdir()]


def test_is_fetched_once_by_processes_that_may_start_together(registry: Registry):
    command = [sys.executable, "-c", LENGTH]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    script = load_niivue()
    assert {int(stdout) for stdout, _ in said} == {len(script)}
    assert b"Niivue" in script
    assert registry.requests in (1, 2)  # of the two processes, none of this one
    assert cached_files() == [ARCHIVE]


def test_another_file_than_the_pinned_one_is_refused(registry: Registry):
    registry.content = b"something else"
    with pytest.raises(InstallationError, match=f"{PATH_IN_REGISTRY} .its SHA-512 differs"):
        load_niivue()
    assert not cached_archive().exists()


def test_a_damaged_file_in_the_cache_is_fetched_again(registry: Registry, archive: Path):
    cached_archive().parent.mkdir(parents=True)
    cached_archive().write_bytes(archive.read_bytes()[:-1])
    load_niivue()
    assert cached_archive().read_bytes() == archive.read_bytes()


def test_without_a_network_a_line_says_how_to_bring_it(registry: Registry, archive: Path, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/")
    with pytest.raises(InstallationError) as error:
        load_niivue()
    (line,) = str(error.value).splitlines()
    assert f"http://127.0.0.1:9/{PATH_IN_REGISTRY} (" in line
    assert f"`npm pack {niivue.PACKAGE}` writes the same file: put it at {cached_archive()}" in line

    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(archive))
    by_name = load_niivue()
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    cached_archive().parent.mkdir(parents=True)
    shutil.copy(archive, cached_archive())
    assert load_niivue() == by_name


def test_without_npm_a_line_says_how_to_name_the_registry(registry: Registry, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallationError, match=r"npm's registry .install npm, or name it by NPM_CONFIG_REGISTRY"):
        load_niivue()
    assert registry.requests == 0


def test_a_named_file_that_does_not_serve(registry: Registry, tmp_path: Path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "nowhere.tgz"))
    with pytest.raises(InstallationError, match=r"AUTOSAM2_NIIVUE=.*nowhere.tgz cannot be read: No such file"):
        load_niivue()
    (tmp_path / "nowhere.tgz").write_bytes(b"something else")
    with pytest.raises(InstallationError, match=r"AUTOSAM2_NIIVUE=.*nowhere.tgz is not what `npm pack .* differs"):
        load_niivue()
    assert registry.requests == 0


@pytest.mark.skipif(not shutil.which("npm"), reason="no npm")
def test_the_registry_of_npms_configuration_is_asked(registry: Registry, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    (tmp_path / "npmrc").write_text(f"registry={registry.address}\n")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    load_niivue()
    assert registry.requests == 1
