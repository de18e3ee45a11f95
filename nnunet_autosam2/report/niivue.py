"""NiiVue, which the report's viewer draws with: fetched on first use from the registry that npm names."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from nnunet_autosam2.errors import InstallationError
from nnunet_autosam2.support.staging import replaced_file

PACKAGE = "@niivue/niivue@0.69.0"
SHA512 = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
"""Hash of the archive, as in npm's lock files"""
ARCHIVE = "niivue-niivue-0.69.0.tgz"
"""The name that `npm pack` gives it"""
PATH_IN_REGISTRY = "@niivue/niivue/-/niivue-0.69.0.tgz"
SCRIPT = "niivue.umd.js"
ENVIRONMENT_VARIABLE = "AUTOSAM2_NIIVUE"
TIMEOUT = 10  # seconds without an answer


def load_niivue() -> bytes:
    """The script, from the archive that AUTOSAM2_NIIVUE names, else from the cache, else from npm's registry.

    Raises:
        InstallationError: the archive cannot be had, or is not the pinned one; the message says how to bring it.
    """
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return _script(_read(Path(named)))
    cached = cached_archive()
    if cached.is_file() and _is_pinned(content := cached.read_bytes()):
        return _script(content)
    content = _download(cached)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(cached) as temporary:  # another process may do the same
            temporary.write_bytes(content)
    except OSError as error:
        raise InstallationError(
            f"{cached} cannot be written: {error.strerror or error}. XDG_CACHE_HOME names another cache."
        ) from error
    return _script(content)


def cached_archive() -> Path:
    """Path at which it is kept, below `$XDG_CACHE_HOME` or `~/.cache`, as the model hub's files are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnunet-autosam2" / ARCHIVE


def _read(archive: Path) -> bytes:
    try:
        content = archive.read_bytes()
    except OSError as error:
        raise InstallationError(f"{ENVIRONMENT_VARIABLE}={archive} cannot be read: {error.strerror}.") from error
    if not _is_pinned(content):
        raise InstallationError(
            f"{ENVIRONMENT_VARIABLE}={archive} is not what `npm pack {PACKAGE}` writes: its SHA-512 differs."
        )
    return content


def _download(cached: Path) -> bytes:
    registry = _registry()
    address = f"{registry}/{PATH_IN_REGISTRY}" if registry else "npm's registry"
    try:
        if registry is None:
            raise ValueError("install npm, or name it by NPM_CONFIG_REGISTRY")
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            content = answer.read()
        reason = "" if _is_pinned(content) else "its SHA-512 differs from the pinned one"
    except (OSError, HTTPException, ValueError) as error:  # the last of an address that is none
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    if reason:
        raise InstallationError(
            f"NiiVue, with which the viewer draws, cannot be fetched from {address} ({reason}). Where there is a "
            f"network, `npm pack {PACKAGE}` writes the same file: put it at {cached}, or name it by "
            f"{ENVIRONMENT_VARIABLE}=FILE. --viewer-cases 0 leaves the viewer out."
        )
    return content


def _registry() -> str | None:
    """The one that npm would ask: of the environment, or of npm's configuration or default. None without npm."""
    named = next((value for key, value in os.environ.items() if key.lower() == "npm_config_registry" and value), None)
    if named is None and (npm := shutil.which("npm")):
        asked = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, check=False)
        named = asked.stdout.strip() if asked.returncode == 0 else None
    return named.rstrip("/") if named else None


def _is_pinned(archive: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(archive).digest()).decode() == SHA512


def _script(archive: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as package:
        member = package.extractfile(f"package/dist/{SCRIPT}")
        assert member is not None
        return member.read()
