"""Puts NiiVue, which the report's viewer draws with, into `static/`.

`python -m nnunet_autosam2.report.fetch_niivue` asks npm for the package. Where there is no network, name a file that
`npm pack` has written elsewhere. Standard library only: the build of this package calls it too.
"""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE = "@niivue/niivue@0.69.0"
SHA512 = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
"""SHA-512 of the package, as in npm's lock files"""
STATIC = Path(__file__).with_name("static")
BUNDLE = STATIC / "niivue.umd.js"


class FetchError(Exception):
    """NiiVue could not be had; the message says why."""


def fetch(archive: Path | None = None) -> None:
    """
    Args:
        archive: what `npm pack` writes; None asks npm.

    Raises:
        FetchError: npm is missing or fails, or this is not the file that was pinned.
    """
    content = _ask_npm() if archive is None else _read(archive)
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise FetchError(f"{archive or 'What npm gave'} is not {PACKAGE}: its SHA-512 differs.")
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        member = package.extractfile(f"package/dist/{BUNDLE.name}")
        assert member is not None
        script = member.read()
    STATIC.mkdir(exist_ok=True)
    temporary = BUNDLE.with_suffix(".part")
    temporary.write_bytes(script)
    temporary.replace(BUNDLE)


def _ask_npm() -> bytes:
    with TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
        except FileNotFoundError:
            raise FetchError("npm is missing: install Node.js, or give a file that npm pack wrote elsewhere.") from None
        except subprocess.CalledProcessError as error:
            reason = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
            raise FetchError(f"npm pack {PACKAGE} failed: {reason}") from error
        (archive,) = Path(folder).glob("*.tgz")
        return archive.read_bytes()


def _read(archive: Path) -> bytes:
    try:
        return archive.read_bytes()
    except OSError as error:
        raise FetchError(f"{archive} cannot be read: {error.strerror}.") from error


if __name__ == "__main__":
    try:
        fetch(Path(sys.argv[1]) if sys.argv[1:] else None)
    except (FetchError, OSError) as error:
        raise SystemExit(f"Error: {error}") from error
    print(BUNDLE)
