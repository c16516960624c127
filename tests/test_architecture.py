"""The house rules that a syntax tree can show: what imports what, who prints, who reads pickles, what is documented."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "banaudit"
FILES = sorted(ROOT.rglob("*.py"))

TIERS = (
    ("errors", "shapes", "whole_files", "precision", "randomness"),
    ("results", "meter"),
    ("statistics", "data", "triggers", "method", "pixel_changes"),
    ("checkpoints",),
    ("architectures",),
    ("neurons",),
    ("preflight", "disguises"),
    ("preprocessing",),
    ("resume",),
    ("training",),
    ("detectors",),
    ("mitigations", "agreement"),
    ("natural_leaning", "calibration"),
    ("audit", "relapse"),
    ("after_repair",),
    ("purify",),
)
"""The tower, from its foot: a module or package imports from itself and from the tiers before its own."""

TOWER = tuple(name for tier in TIERS for name in tier)

BESIDE = {
    "reports": {"results"},
    "demo": {*TOWER},
    "bench": {*TOWER, "reports"},
    "cli": {*TOWER, "reports"},
    "__init__": {"audit", "results"},
    "__main__": {"cli"},
}
"""What stands beside the tower, and what each may import."""

WRITES_RECORDS = {"purify": {"reports"}}
"""Who in the tower may import from beside it: the record that goes with a repaired file is JSON like any other."""

PUBLIC_ONLY_BY = {"bench": "cli/bench", "demo": "cli/demo"}
"""Packages that one command alone imports: the stem of that command's files."""

PICKLE_READERS = {"checkpoints/reader.py", "resume.py", "bench/round_trip.py"}
"""Files that call ``torch.load``; the second reads back what it wrote itself, the third what the first has read."""


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def unit(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def imported_units(file: Path) -> set[str]:
    """Modules and packages of banaudit that a file imports anywhere, also within functions and for type checking."""
    names: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(file)}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and called(node) == "importlib.import_module":
            names |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
    parts = [name.split(".") for name in names]
    units = {part[1] for part in parts if part[0] == "banaudit" and len(part) > 1 and part[1] != "__version__"}
    return units - {unit(file)}


def called(call: ast.Call) -> str:
    """Dotted name of what is called, or nothing."""
    return ast.unparse(call.func) if isinstance(call.func, ast.Name | ast.Attribute) else ""


def calls(file: Path, *names: str) -> list[ast.Call]:
    return [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call) and called(node) in names]


def functions_and_classes(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public ones with their dotted names, methods of public classes included."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from functions_and_classes(node.body, f"{prefix}{node.name}.")


def allowed(name: str) -> set[str]:
    if name in BESIDE:
        return BESIDE[name]
    below: set[str] = set()
    for tier in TIERS:
        if name in tier:
            return below | WRITES_RECORDS.get(name, set())
        below |= set(tier)
    pytest.fail(
        f"banaudit/{name} has no place in the tower: give it one in TIERS or BESIDE and in docs/architecture.md"
    )


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_imports_point_one_way(file):
    may = set(allowed(unit(file)))
    may |= {package for package, command in PUBLIC_ONLY_BY.items() if relative(file).startswith(command)}
    assert imported_units(file) <= may


def test_the_tower_names_what_there_is():
    there = {unit(file) for file in FILES}
    assert set(TOWER) | set(BESIDE) <= there


def test_the_document_lists_the_tower_in_its_order():
    text = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = [name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert set(listed) == (set(TOWER) | set(BESIDE)) - {"__init__", "__main__"}
    tier = {name: number for number, names in enumerate(TIERS) for name in names}
    numbers = [tier[name] for name in listed if name in tier]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_the_library_returns_data_and_commands_print(file):
    is_command = unit(file) == "cli" or (
        unit(file) in {"demo", "bench"} and "__main__" in file.read_text(encoding="utf-8")
    )
    assert is_command or not calls(file, "print", "sys.stdout.write", "sys.stderr.write", "typer.echo")


def test_one_file_reads_pickles_and_runs_none():
    loads = {relative(file): calls(file, "torch.load") for file in FILES}
    assert {name for name, found in loads.items() if found} == PICKLE_READERS
    for found in loads.values():
        for load in found:
            given = {keyword.arg: keyword.value for keyword in load.keywords}
            assert isinstance(given["weights_only"], ast.Constant)
            assert given["weights_only"].value is True
    for file in FILES:
        assert not calls(file, "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load", "eval", "exec")


def test_no_drawer_for_odds_and_ends():
    assert not {file.stem for file in FILES} & {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_no_public_function_passes_settings_through(file):
    for name, node in functions_and_classes(tree(file).body):
        assert isinstance(node, ast.ClassDef) or node.args.kwarg is None, name


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_everything_public_is_documented(file):
    assert ast.get_docstring(tree(file)), "module"
    for name, node in functions_and_classes(tree(file).body):
        assert ast.get_docstring(node), name


@pytest.mark.parametrize("file", [file for file in FILES if "__all__ = " in file.read_text("utf-8")], ids=relative)
def test_all_names_what_is_public(file):
    module = importlib.import_module(".".join(("banaudit", *file.relative_to(ROOT).parent.parts)))
    names = module.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(module, name) for name in names)
    defined = {name for name, _ in functions_and_classes(tree(file).body) if "." not in name}
    for node in tree(file).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and not target.id.startswith("_"):
            defined.add(target.id)
    assert defined <= set(names)


def test_the_front_door_opens_on_what_it_names():
    import banaudit

    for name in banaudit.__all__:
        assert getattr(banaudit, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'verdict'"):
        banaudit.verdict  # noqa: B018
