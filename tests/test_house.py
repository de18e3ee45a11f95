"""The package as a house: a name means one thing, rooms lean on each other one way, what documents name exists."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "nnunet_autosam2"
ENTRY_POINTS = {"main", "command"}
"""Of programs and sub-commands, one a file by convention"""
OF_OTHERS = {"train.py"}
"""Files of the original AutoSAM2, which the design compares with"""
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def modules() -> dict[str, ast.Module]:
    """Module → its tree, of all in the package, `dataset_conversion` under its name in it."""
    trees = {}
    for folder in (PACKAGE, "dataset_conversion"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] == (PACKAGE, "dataset_conversion"):
                continue  # the link
            name = ".".join(parts if parts[0] == PACKAGE else (PACKAGE, *parts))
            trees[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


MODULES = modules()


def test_the_package_is_there():
    assert {f"{PACKAGE}.benchmark.results", f"{PACKAGE}.dataset_conversion.brats"} < MODULES.keys()


def test_no_two_classes_or_public_functions_of_one_name():
    homes = defaultdict(list)
    for module, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    twice = {name: where for name, where in homes.items() if len(where) > 1 and name not in ENTRY_POINTS}
    assert not twice


def imported(module: str, statements: Iterator[ast.AST]) -> Iterator[str]:
    """Modules of the package that these statements import, without the packages above them."""
    for node in statements:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module or "" for name in below]
        yield from (name for name in names if name in MODULES)


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that are run when the module is imported: not those in functions or for type checkers alone."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from run_at_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            for field in ("body", "orelse", "finalbody", "handlers"):
                yield from run_at_import(getattr(node, field, []))


def test_modules_do_not_import_each_other_in_circles():
    """At import. What a function imports is loaded later, when it is called, and cannot fail so."""
    imports = {module: set(imported(module, run_at_import(tree.body))) - {module} for module, tree in MODULES.items()}
    while leaves := {module for module, wanted in imports.items() if not wanted & imports.keys()}:
        for module in leaves:
            del imports[module]
    circles = {module: sorted(wanted & imports.keys()) for module, wanted in imports.items()}
    assert not circles


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("benchmark", ["report", "cli"]),
        ("evaluation", ["benchmark", "report", "cli", "trainers"]),
        ("dataset_conversion", ["evaluation", "benchmark", "report", "show", "cli", "trainers", "architectures"]),
        ("support", ["dataset_conversion", "evaluation", "benchmark", "report", "show", "cli", "trainers"]),
        ("architectures", ["dataset_conversion", "evaluation", "benchmark", "report", "show", "cli", "trainers"]),
    ],
)
def test_rooms_lean_on_each_other_one_way(room: str, others: list[str]):
    """Within functions, too."""
    forbidden = tuple(f"{PACKAGE}.{other}" for other in others)
    wrong = {
        (module, name)
        for module, tree in MODULES.items()
        if module.startswith(f"{PACKAGE}.{room}")
        for name in imported(module, ast.walk(tree))
        if name.startswith(forbidden)
    }
    assert not wrong


TESTED_ELSEWHERE = {
    "architectures/outputs.py": "architectures/test_autosam2.py",  # records without a line of code
    "dataset_conversion/regions.py": "evaluation/test_numbering.py",  # constants, tested by what they mean
}


def test_every_module_has_its_tests_where_one_looks_for_them():
    """`tests/trainers/test_loss.py` tests `trainers/loss.py`."""
    modules = {path.relative_to(ROOT / PACKAGE) for path in (ROOT / PACKAGE).rglob("*.py")}
    modules |= {path.relative_to(ROOT) for path in (ROOT / "dataset_conversion").rglob("*.py")}
    without = set()
    for module in (module for module in modules if module.name != "__init__.py"):
        mirror = module.with_name(f"test_{module.name}").as_posix()
        if not (ROOT / "tests" / TESTED_ELSEWHERE.get(module.as_posix(), mirror)).is_file():
            without.add(module.as_posix())
    assert not without


TOPS = (PACKAGE, "dataset_conversion", "overlay", "experiments", "demo", "tests", "docs", ".ci")
PATH = re.compile(rf"[\w.-]+(?:/[\w.-]+)*\.(?:py|sh)\b|\b(?:{'|'.join(map(re.escape, TOPS))})/[\w./-]*")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
PROGRAM = re.compile(rf"\b(?:{PACKAGE}|experiments)(?:\.\w+)+")


def named_paths(text: str) -> set[str]:
    """Files and folders in code spans and code blocks, `trainers/loss.py` as well as `nnunet_autosam2/report/`."""
    spans = re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL)
    return {path for span in spans for path in PATH.findall(span)}


def exists(path: str) -> bool:
    """From the root, or below it somewhere: `loss.py` and `trainers/loss.py` are both fine."""
    return any((ROOT / path).exists() or next((ROOT / top).rglob(path.rstrip("/")), None) for top in TOPS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_that_a_document_names_exist(document: Path):
    text = document.read_text(encoding="utf-8")
    missing = {path for path in named_paths(text) - OF_OTHERS if not exists(path)}
    missing |= {link for link in LINK.findall(text) if not (document.parent / link).exists()}
    for name in PROGRAM.findall(text):
        parts = Path(*name.split("."))
        if not any((ROOT / base).exists() for base in (parts, parts.with_suffix(".py"), *parts.parents[:2])):
            missing.add(name)
    assert not missing


GLOSSARY = [
    line.split("|")[1].strip()
    for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|")
][2:]


def test_glossary_is_short_and_in_order():
    assert 10 < len(GLOSSARY) <= 40
    assert sorted(GLOSSARY, key=str.lower) == GLOSSARY


NOT_A_BEGINNING = ("Of ", "Who ", "Whether ", "What ", "Which ", "For ", "By ", "From ", "As ", "In ", "Before ")


def documented(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, those below attributes and constants included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()


def test_docstrings_begin_with_a_verb_or_a_noun():
    wrong = {
        f"{module}:{line}: {text.splitlines()[0]}"
        for module, tree in MODULES.items()
        for line, text in documented(tree)
        if text.startswith(NOT_A_BEGINNING)
    }
    assert not wrong
