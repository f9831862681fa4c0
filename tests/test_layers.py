"""The layers of jaxprefit/README.md: imports point down, folders form no cycle, programs are not libraries."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

LAYERS = (
    ("errors",),
    ("gram", "significance", "strategies", "surgery", "runtime"),
    ("render", "encoder", "data.records"),
    ("data", "checkpoints"),
    ("families", "model"),
    ("training", "conflict"),
    ("downstream",),
    ("representations",),
    ("conflict.report", "export"),
)
"""Folders and modules of the package from the ground up. One imports from layers below its own and from its own."""

MAY_NOT = {
    # Ideas 1, 2 and 4 stand on their own; what is measured or combined are trees and numbers.
    "encoder": ("errors", "runtime"),
    "gram": (),
    "strategies": ("errors",),
    "surgery": ("errors",),
    "conflict": ("errors", "gram", "significance", "encoder", "render", "runtime"),
}
"""What alone these may import of the package."""

LONG = {
    "experiments/common/study_results.py": "the fields of study.json, each with its meaning",
    "jaxprefit/conflict/results.py": "the fields of conflict.json, each with its meaning",
    "jaxprefit/data/synthetic/templates.py": "one table of sentence templates",
}
"""Files above 300 lines, each with the reason why it is one."""


def files() -> list[Path]:
    return [p for folder in ("jaxprefit", "experiments", "configs") for p in sorted((ROOT / folder).rglob("*.py"))]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, Path]:
    return {module_name(file): file for file in files()}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """The project's modules that a module names in an import anywhere in it."""
    named = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= {name if name in modules() else node.module for name in inner}
    return frozenset(named & modules().keys())


def folder(module: str) -> str:
    """The folder of a module, a module at the top of its tree being one of its own."""
    if modules()[module].name == "__init__.py":
        return module
    parent = module.rpartition(".")[0]
    return module if parent in ("jaxprefit", "experiments", "configs", "") else parent


def folder_edges() -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for module in modules():
        for other in imports(module):
            if folder(module) != folder(other):
                edges.setdefault(folder(module), set()).add(folder(other))
    return edges


def test_imports_point_down() -> None:
    level = {f"jaxprefit.{name}": number for number, layer in enumerate(LAYERS) for name in layer}
    known = {name for name in folder_edges() if name.startswith("jaxprefit.")} - {"jaxprefit.data.synthetic"}
    assert known <= level.keys(), "a new folder needs its place in LAYERS"
    upward = {
        f"{a} -> {b}"
        for a, others in folder_edges().items()
        for b in others
        if a in level and b in level and level[a] < level[b]
    }
    assert not upward


@pytest.mark.parametrize("name", MAY_NOT)
def test_the_ideas_stand_on_their_own(name: str) -> None:
    allowed = {f"jaxprefit.{other}" for other in MAY_NOT[name]}
    assert folder_edges().get(f"jaxprefit.{name}", set()) <= allowed


def test_the_package_knows_no_program_and_no_config() -> None:
    assert not {
        (a, b) for a, others in folder_edges().items() for b in others
        if a.startswith("jaxprefit") and not b.startswith("jaxprefit")
    }  # fmt: skip


def test_no_folder_level_cycle() -> None:
    left = {name: set(others) for name, others in folder_edges().items()}
    while ground := {name for others in left.values() for name in others} - left.keys() or {
        name for name, others in left.items() if not others
    }:
        left = {name: others - ground for name, others in left.items() if name not in ground}
    assert not left


def test_nobody_imports_from_a_program() -> None:
    programs = {m for m, file in modules().items() if 'if __name__ == "__main__":' in file.read_text()}
    programs |= {m for m in modules() if m.endswith(".__main__")}
    assert len(programs) > 10
    assert not {(m, p) for m in modules() for p in imports(m) & programs}


def test_folders_and_files_keep_their_size() -> None:
    counts: dict[Path, int] = {}
    for file in files():
        counts[file.parent] = counts.get(file.parent, 0) + 1
    assert {str(f): n for f, n in counts.items() if n > 16} == {}
    long = {str(f.relative_to(ROOT)) for f in files() if len(f.read_text().splitlines()) > 300}
    assert long == LONG.keys()


def test_import_is_light() -> None:
    code = "import sys, jaxprefit; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"tensorflow_datasets", "matplotlib", "sklearn", "pyarrow", "optax", "scipy"}
    assert not loaded & {*heavy, "jaxprefit.training", "jaxprefit.data.builders"}


def test_import_without_fcntl() -> None:
    # As on Windows.
    code = "import sys; sys.modules['fcntl'] = None; import jaxprefit; from jaxprefit.runtime import files"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
