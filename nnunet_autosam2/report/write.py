"""The report's folder: `index.html`, and `viewer.html` with NiiVue and the volumes."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunet_autosam2.benchmark.results import LEAST_CASES, Benchmark, read_benchmark
from nnunet_autosam2.benchmark.tables import (
    BOUNDARY,
    LESION_WISE,
    OVERLAP,
    case_table,
    comparison_tables,
    cost_table,
    score_table,
)
from nnunet_autosam2.dataset_conversion.regions import REGIONS, TARGET
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.report.figures import draw_figures
from nnunet_autosam2.report.niivue import SCRIPT, load_niivue
from nnunet_autosam2.report.volumes import pack_cases
from nnunet_autosam2.show.legend import UNKNOWN
from nnunet_autosam2.support.staging import replaced_folder

TEMPLATES = Path(__file__).with_name("templates")
NAME = "report"


def write_report(folder: Path, viewer_cases: int) -> Path:
    """Writes `report/` into a benchmark's folder, in the place of an earlier one, and gives its `index.html`.

    Args:
        viewer_cases: how many the viewer shows; 0 for a report without it.

    Raises:
        DatasetError: a file of the benchmark is missing or wrong, or the disk refuses.
        InstallationError: NiiVue cannot be had.
    """
    benchmark = read_benchmark(folder)
    niivue = load_niivue() if viewer_cases else b""
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    _require_replaceable(folder / NAME)
    with replaced_folder(folder / NAME) as staged:
        cases = pack_cases(benchmark, folder, viewer_cases, staged) if viewer_cases else []
        if cases:
            others = {"title": "no label of this data set", "colour": UNKNOWN}
            labels = [*(label.model_dump(include={"title", "colour"}) for label in benchmark.labels), others]
            data = {"cases": cases, "regions": benchmark.regions, "labels": labels}
            page = environment.get_template("viewer.html").render(
                benchmark=benchmark, cases=cases, regions=benchmark.regions, labels=labels, data=data
            )
            (staged / "viewer.html").write_text(page, encoding="utf-8")
            (staged / SCRIPT).write_bytes(niivue)
            for file in (TEMPLATES / "viewer.js", TEMPLATES / "niivue-LICENSE.txt"):
                shutil.copyfile(file, staged / file.name)
        page = environment.get_template("index.html").render(_index(benchmark, cases))
        (staged / "index.html").write_text(page, encoding="utf-8")
    return folder / NAME / "index.html"


def _index(benchmark: Benchmark, cases: list[dict[str, Any]]) -> dict[str, Any]:
    captions = {
        "Overlap with the truth": OVERLAP,
        "Surfaces and sensitivity": BOUNDARY,
        "Lesion by lesion": LESION_WISE,
    }
    tables = [score_table(benchmark, metrics, caption) for caption, metrics in captions.items()]
    failures = [(model.title, fold) for model in benchmark.ordered_models for fold in model.failed]
    figures = {drawing.key: drawing for drawing in draw_figures(benchmark)}
    return {
        "benchmark": benchmark,
        "short_names": _short_names(benchmark.regions),
        "least_cases": LEAST_CASES,
        "finished": sum(len(model.folds) for model in benchmark.models) - len(failures),
        "failures": failures,
        "scores": [table for table in tables if table is not None],
        "comparisons": list(comparison_tables(benchmark)),
        "costs": cost_table(benchmark),
        "case_table": case_table(benchmark),
        "figures": {key: figures.get(key) for key in ("dice", "hd95", "differences", "fraction", "time", "training")},
        "cases": {case["title"]: number for number, case in enumerate(cases)},
        "version": version("nnunet-autosam2"),
    }


def _short_names(regions: list[str]) -> str:
    """`ET: enhancing tumor, TC: tumor core, …`, empty unless all are regions of BraTS."""
    of_brats = {**REGIONS, **TARGET}
    return ", ".join(f"{short}: {of_brats[short].name}" for short in regions) if of_brats.keys() >= set(regions) else ""


def _require_replaceable(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()) and not (target / "index.html").is_file():
        raise DatasetError(f"{target} holds something that is no report: move it away.")
    if target.exists() and not target.is_dir():
        raise DatasetError(f"{target} is a file: move it away.")
