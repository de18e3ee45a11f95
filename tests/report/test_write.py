import json
import re
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from nnunet_autosam2.cli.main import main
from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES
from nnunet_autosam2.report.niivue import ENVIRONMENT_VARIABLE
from nnunet_autosam2.show.legend import legend
from tests.fork_server import run

NO_VIEWER = ("--viewer-cases", "0")


class Page(HTMLParser):
    """What a page holds: how many of each tag, ids, addresses, text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in {"href", "src", "xlink:href", "action"}]

    def handle_data(self, data):
        self.text += data


def report(folder: Path, *options: str, afresh: bool = False) -> subprocess.CompletedProcess[str]:
    return run("autosam2", "report", folder, *options, folder=folder.parent, afresh=afresh)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_writes_a_folder_that_stands_alone(benchmark):
    benchmark.fail("UNet only", 1, "<b>Killed</b> by the kernel")
    before = files(benchmark.path)
    result = report(benchmark.path, "--viewer-cases", "2", afresh=True)
    assert result.returncode == 0, result.stderr
    folder = benchmark.path / "report"
    assert str(folder / "index.html") in result.stdout
    written = files(folder)
    assert {name for name in written if "/" not in name} == {
        "index.html", "viewer.html", "viewer.js", "niivue.umd.js", "niivue-LICENSE.txt",
    }  # fmt: skip
    assert files(benchmark.path) - before == {f"report/{name}" for name in written}  # nothing temporary is left

    index = Page(folder / "index.html")
    assert index.tags["table"] == index.tags["caption"] == 6
    assert index.tags["svg"] == 6
    assert index.tags["b"] == 0  # of the title and the error
    assert "1 fold failed" in index.text
    assert "UNet only, fold 1: <b>Killed</b> by the kernel" in index.text
    assert 'AutoSAM2 30 % <b>"&$x_1$' in index.text
    assert len(index.ids) == len(set(index.ids))
    for page in (index, Page(folder / "viewer.html")):
        local = {address.partition("#")[0] for address in page.addresses if address != "data:,"}
        assert local - {""} <= written
        inner = {address[1:] for address in page.addresses if address.startswith("#")}
        assert inner <= set(page.ids)


def test_legend_and_regions_are_those_of_the_dataset(benchmark):
    """Label 4 of 2024 is the resection cavity."""
    labels = legend({"labels": {"background": 0, **RELEASES["2024-gli"].regions}})
    benchmark.content["labels"] = [label.model_dump() for label in labels]
    benchmark.write()
    assert report(benchmark.path, "--viewer-cases", "1").returncode == 0
    page = (benchmark.path / "report" / "viewer.html").read_text()
    titles = re.findall(r'<li><span style="background: rgb\(([\d, ]+)\)"></span>([^<]+)</li>', page)
    assert titles == [
        *((", ".join(map(str, label.colour)), label.title) for label in labels),
        ("150, 150, 150", "no label of this data set"),
    ]
    assert "resection cavity" in titles[3][1]
    data = json.loads(re.search(r'id="report">(.*?)</script>', page)[1])
    assert [label["title"] for label in data["labels"]] == [title for _, title in titles]


def test_without_viewer(benchmark):
    result = report(benchmark.path, *NO_VIEWER)
    assert result.returncode == 0, result.stderr
    assert files(benchmark.path / "report") == {"index.html"}
    assert not any("viewer" in address for address in Page(benchmark.path / "report" / "index.html").addresses)


def test_replaces_an_earlier_report_whole(benchmark):
    assert report(benchmark.path, "--viewer-cases", "4").returncode == 0
    assert report(benchmark.path, "--viewer-cases", "1").returncode == 0
    volumes = files(benchmark.path / "report" / "volumes")
    assert {name.partition("-")[0] for name in volumes} == {"0"}


def test_an_error_leaves_the_earlier_report(benchmark):
    assert report(benchmark.path, *NO_VIEWER).returncode == 0
    before = (benchmark.path / "report" / "index.html").read_bytes()
    missing = benchmark.path / benchmark.content["models"][0]["folds"][0]["cases"][0]["prediction"]
    missing.unlink()
    result = report(benchmark.path, "--viewer-cases", "4")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert str(missing) in line
    assert "Traceback" not in result.stderr
    assert files(benchmark.path / "report") == {"index.html"}
    assert (benchmark.path / "report" / "index.html").read_bytes() == before
    assert not list(benchmark.path.glob(".report*"))


def test_something_else_in_the_place_of_the_report_stays(benchmark):
    notes = benchmark.path / "report" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    result = report(benchmark.path, *NO_VIEWER)
    assert result.returncode == 1
    assert result.stderr == f"Error: {notes.parent} holds something that is no report: move it away.\n"
    assert notes.read_text() == "mine"


def test_says_how_to_get_the_viewer(benchmark, monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    result = CliRunner().invoke(main, ["report", str(benchmark.path)])
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: NiiVue, with which the viewer draws, cannot be fetched from http://127.0.0.1:9/")
    assert f"{ENVIRONMENT_VARIABLE}=FILE. --viewer-cases 0 leaves the viewer out." in line
    assert not (benchmark.path / "report").exists()
    result = CliRunner().invoke(main, ["report", str(benchmark.path), *NO_VIEWER])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("broken", ["all", "comparisons"])
def test_a_benchmark_in_which_everything_failed_has_a_report(benchmark, broken):
    benchmark.content["comparisons"] = []
    if broken == "all":
        for model in benchmark.content["models"]:
            for fold in (0, 1):
                benchmark.fail(model["title"], fold, "no GPU")
    benchmark.write()
    result = report(benchmark.path, "--viewer-cases", "1")
    assert result.returncode == 0, result.stderr
    index = Page(benchmark.path / "report" / "index.html")
    assert ("6 folds failed" in index.text) == (broken == "all")
    assert (benchmark.path / "report" / "viewer.html").exists() == (broken != "all")
