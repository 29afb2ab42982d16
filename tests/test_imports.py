"""Who may import whom; docs/architecture.md says why."""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import voiced

ROOT = Path(voiced.__file__).parent.parent
MODULES = sorted((ROOT / "voiced").rglob("*.py"))

BLOCKING = {"asyncio", "threading", "socket", "select", "time", "subprocess"}
"""What waits, tells the time or reaches out: none of it in the core."""

ARROWS: dict[str, set[str]] = {
    "voiced": set(),
    "voiced.config": set(),
    "voiced.events": {"voiced.config"},
    "voiced.core": {"voiced.config", "voiced.events", "voiced.core"},
    "voiced.edge": {
        "voiced",
        "voiced.config",
        "voiced.events",
        "voiced.edge.pcm",  # helpers of the edges, and no devices
        "voiced.edge.resample",
        "voiced.edge.played",
        "voiced.edge.vitals",
    },
    "voiced.app": {"voiced", "voiced.config", "voiced.events", "voiced.core", "voiced.edge"},
    "voiced.__main__": {"voiced", "voiced.config", "voiced.app", "voiced.edge"},
    "voiced.voicectl": {"voiced.core.calibration"},
    "voiced.sim": {"voiced.sim", "voiced.voicectl"},
    "voiced.sim.console": {"voiced.sim", "voiced.voicectl", "voiced.edge.pcm"},  # opens a card
    "voiced.sim.board": {"voiced.sim", "voiced.__main__"},  # the daemon, on a board of its own
}
"""Module or package -> what of voiced it may import (with all that is inside)."""

ONLY_FOR_TESTS = {"openai", "pytest", "hypothesis", "cryptography", "pydantic"}


class Import(NamedTuple):
    name: str
    line: int
    late: bool
    """Inside a function: not needed to load the module."""


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def exists(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def imports(path: Path) -> list[Import]:
    """All imports of a file; `from x import y` counts as x.y where that is a module."""
    tree = ast.parse(path.read_text("utf-8"))
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            module = node.module or ""
            whole = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if exists(name) else module for name in whole]
        else:
            continue
        found += [Import(name, node.lineno, id(node) in late) for name in dict.fromkeys(names)]
    return found


def inside(name: str, package: str) -> bool:
    """`voiced` itself, the version, stands for no other module."""
    return name == package or (package != "voiced" and name.startswith(f"{package}."))


def allowed(module: str) -> set[str]:
    """The most particular row of ARROWS for this module."""
    rows = [row for row in ARROWS if inside(module, row)]
    assert rows, f"{module} has no row in ARROWS: who may it import?"
    return ARROWS[max(rows, key=len)]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_these_arrows(path: Path) -> None:
    may = allowed(dotted(path))
    own = [each for each in imports(path) if each.name.split(".")[0] == "voiced"]
    wrong = [f"line {i.line}: {i.name}" for i in own if not any(inside(i.name, a) for a in may)]
    assert not wrong, f"{dotted(path)} may not import {wrong}"


@pytest.mark.parametrize("path", sorted((ROOT / "voiced/core").glob("*.py")), ids=dotted)
def test_the_core_can_not_wait(path: Path) -> None:
    outside = {each.name.split(".")[0] for each in imports(path)} - {"voiced", "numpy", "msgspec"}
    assert outside <= sys.stdlib_module_names
    assert not outside & BLOCKING


def test_the_daemon_on_the_board_is_imported_late() -> None:
    """Its process sets up mock pins first."""
    found = [i for i in imports(ROOT / "voiced/sim/board.py") if i.name == "voiced.__main__"]
    assert found
    assert all(each.late for each in found)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_what_is_for_tests_stays_in_tests(path: Path) -> None:
    assert not {each.name.split(".")[0] for each in imports(path)} & ({"tests"} | ONLY_FOR_TESTS)


def test_every_row_of_the_arrows_is_of_something_that_is_there() -> None:
    named = set(ARROWS) | {name for row in ARROWS.values() for name in row}
    assert not [name for name in named if not exists(name)]
