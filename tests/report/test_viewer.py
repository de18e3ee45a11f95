"""In a real browser, as a file and from a file server."""

import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import nibabel
import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from nnunet_autosam2.report.write import write_report

SECONDS = 60_000


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def report(benchmark_template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every case in its viewer."""
    folder = Path(shutil.copytree(benchmark_template.path, tmp_path_factory.mktemp("viewer") / "benchmark"))
    return write_report(folder, 4).parent


@pytest.fixture(scope="module")
def server(report: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=report)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[str], Page]]:
    """Opens addresses, and fails the test if a page complains or asks another host."""
    context = browser.new_context(viewport={"width": 960, "height": 600})
    complaints: list[str] = []
    hosts: set[str] = set()

    def opened(address: str) -> Page:
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: hosts.add(urlparse(request.url).hostname or ""))
        page.goto(address)
        return page

    yield opened
    context.close()
    assert complaints == []
    assert hosts <= {"", "127.0.0.1"}


def wait_for_case(page: Page) -> None:
    page.wait_for_function("document.getElementById('message').textContent === ''")


def picture(page: Page) -> bytes:
    """The canvas as it is on the screen."""
    return page.locator("#canvas").screenshot()


def axial_slice(page: Page) -> int:
    return page.evaluate("nv.frac2vox(nv.scene.crosshairPos)[2]")


def test_the_page_opens_and_leads_to_a_case(open_page, report: Path):
    page = open_page((report / "index.html").as_uri())
    assert page.locator("svg[role=img]").count() == 6
    assert page.locator("h1").inner_text() == "Dataset005_Phantom"
    page.get_by_role("link", name="phantom <2> & 'ä'").click()
    wait_for_case(page)
    assert "phantom <2> & 'ä'" in page.locator("#case option:checked").inner_text()


def test_the_index_of_250_cases_opens_within_two_seconds(open_page, benchmark):
    content = benchmark.content
    for model in content["models"]:
        for fold in model["folds"]:
            fold["cases"] = [{**case, "case": f"{case['case']} {n}"} for case in fold["cases"] for n in range(63)]
    content["cases"] = {f"{name} {n}": files for name, files in content["cases"].items() for n in range(63)}
    benchmark.write()
    index = write_report(benchmark.path, 250)
    page = open_page(index.as_uri())
    assert page.locator("a[href^='viewer.html']").count() >= 250
    timing = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < timing < 2000


def test_scrolls_toggles_and_changes_channel_and_case(open_page, server: str):
    page = open_page(f"{server}/viewer.html")
    wait_for_case(page)
    assert page.evaluate("nv.volumes.length") == 5  # channel, truth, three models

    before, first = axial_slice(page), picture(page)
    page.keyboard.press("ArrowUp")
    assert axial_slice(page) == before + 1
    moved = picture(page)
    assert moved != first
    page.get_by_role("slider", name="Axial").fill(str(before))
    assert axial_slice(page) == before
    assert picture(page) == first
    assert "T1ce" in page.locator("#location").inner_text()

    model = page.get_by_label("nnU-Net", exact=True)
    assert model.is_checked()
    model.uncheck()
    without = picture(page)
    assert without != first
    assert page.evaluate("nv.volumes[2].opacity") == 0
    page.keyboard.press("2")
    assert model.is_checked()
    assert picture(page) == first
    page.locator("#opacity").fill("90")
    assert picture(page) != first
    page.get_by_label("Outline of nnU-Net", exact=True).check()
    assert picture(page) != without

    page.get_by_label("FLAIR").check()
    wait_for_case(page)
    assert page.evaluate("channel.name") == "FLAIR"
    assert axial_slice(page) == before

    title = page.locator("#case option:checked").inner_text()
    page.get_by_role("button", name="Next case").click()
    page.wait_for_function("document.getElementById('case').value === '1'")
    wait_for_case(page)
    assert page.locator("#case option:checked").inner_text() != title
    assert page.evaluate("channel.name") == "FLAIR"


def test_shows_the_dice_of_the_case(open_page, report: Path, benchmark_template):
    page = open_page((report / "viewer.html").as_uri())
    wait_for_case(page)
    case = page.evaluate("current.title")
    results = benchmark_template.content["models"][0]["folds"]
    (scores,) = [result["scores"] for fold in results for result in fold["cases"] if result["case"] == case]
    cells = page.locator("#overlays tr").nth(1).locator("td").all_inner_texts()
    assert cells[:3] == [f"{100 * scores[region]['Dice']:.1f}" for region in ("ET", "TC", "WT")]


def test_the_label_at_the_crosshair_is_that_of_the_file(open_page, report: Path, benchmark_template):
    """Where the file's first axis runs to the patient's left, the viewer turns it round."""
    page = open_page((report / "viewer.html").as_uri())
    wait_for_case(page)
    truth = nibabel.load(benchmark_template.content["cases"][page.evaluate("current.title")]["truth"])
    names = {1: "oedema", 2: "necrosis", 3: "enhancing"}
    for label, name in names.items():
        voxel = np.argwhere(np.asanyarray(truth.dataobj) == label)[0]
        position = (truth.affine @ [*voxel, 1])[:3].tolist()
        page.evaluate("(mm) => { nv.scene.crosshairPos = nv.mm2frac(mm); moved(); }", position)
        rows = page.locator("#location dd").all_inner_texts()
        assert rows[2].startswith(name)


def test_says_which_volume_is_missing(browser: Browser, report: Path, tmp_path: Path):
    copied = Path(shutil.copytree(report, tmp_path / "report"))
    (copied / "volumes" / "0-2.js").unlink()
    page = browser.new_page()
    page.goto((copied / "viewer.html").as_uri())
    page.wait_for_function("document.getElementById('message').textContent.includes('missing')", timeout=SECONDS)
    assert page.locator("#message").inner_text() == "volumes/0-2.js is missing beside this page."
    page.close()
