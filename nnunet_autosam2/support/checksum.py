"""Checksums of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK = 2**20  # bytes


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
