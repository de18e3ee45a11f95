import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Hub(ThreadingHTTPServer):
    """Serves the weights of sam2.1-hiera-tiny as the model hub does."""

    path = "/facebook/sam2.1-hiera-tiny/resolve/main/sam2.1_hiera_tiny.pt"
    content = b"weights of SAM2"
    breaks_after: int | None = None
    """Bytes after which the connection breaks, once"""
    pause = 0.0
    """Seconds that a download takes"""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.starts: list[int] = []
        """First byte of each download"""

    @property
    def environment(self) -> dict[str, str]:
        """For a process that takes this for the model hub."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self, start: int = 0) -> None:
        size = len(self.server.content)
        self.send_response((206 if start else 200) if self.path == self.server.path else 404)
        self.send_header("ETag", '"0123abcd"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.do_HEAD(start)
        if self.path == self.server.path:
            self.server.starts.append(start)
            end, self.server.breaks_after = self.server.breaks_after, None
            time.sleep(self.server.pause)
            self.wfile.write(self.server.content[start:end])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def real_data() -> Path:
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real cases are not in {folder}")
    return folder
