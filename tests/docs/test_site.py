"""The site as `make docs` builds it, in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from nnunet_autosam2.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
WIDTHS = (1280, 390)
"""Pixels: a desk and a phone"""
OF_SPHINX = {"genindex", "py-modindex", "search"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a warning, so without a dead link within."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_navigation(site: Path) -> None:
    index = (site / "index.html").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f'href="{page.stem}.html"' in index or page.stem == "index"


def test_every_command_has_its_section(site: Path) -> None:
    titles = re.findall(r"<h\d>([\w-]+)<", (site / "command-line.html").read_text())
    assert set(COMMANDS) <= set(titles)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_can_be_read_by_everyone(site: Path, browser: Browser, width: int) -> None:
    """Axe finds nothing, no page is wider than the screen, and what it links to is there."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    pages = [path for path in sorted(site.glob("*.html")) if path.stem not in OF_SPHINX]
    assert len(pages) > 20
    for path in pages:
        page.goto(path.as_uri())
        found = [(rule["id"], rule["nodes"][0]["html"]) for rule in Axe().run(page).response["violations"]]
        assert not found, f"{path.name}: {found}"
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path.name
        for address in page.eval_on_selector_all("a[href], img[src]", "all => all.map(each => each.href || each.src)"):
            if (parsed := urlparse(address)).scheme == "file":
                target = Path(unquote(parsed.path))
                assert target.exists(), f"{path.name} leads to {target}"
    page.close()
