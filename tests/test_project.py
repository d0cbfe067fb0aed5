"""The house rules that a program can hold: light imports, rooms in one direction, one version, short files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import sinkscope

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sinkscope"
IMPORT_BUDGET = 0.2
LONGEST_FILE = 400

# What each room may import from the package, itself and COMMON aside. Data flows one way.
COMMON = {"_errors", "__version__"}
ROOMS = {
    "models": set[str](),
    "capture": set[str](),
    "artifact": set[str](),
    "attention": {"capture"},
    "tasks": {"attention", "models"},
    "train": {"artifact", "attention", "capture", "explain", "measure", "models", "report", "tasks", "treat"},
    "measure": {"artifact", "capture", "models"},
    "explain": {"artifact"},
    "explain.edits": {"artifact", "capture", "measure", "models"},
    "report": {"artifact", "explain"},
    "treat": {"artifact", "attention", "capture", "models"},
}
OPTIONAL = ("datasets", "gguf", "matplotlib", "onnx", "open_clip", "timm")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(module_name(path) for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def python(code: str) -> str:
    """What a fresh interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of what a file imports, names in modules included."""
    package = list(path.relative_to(PACKAGE.parent).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def test_import_is_fast() -> None:
    code = "import time; start = time.process_time(); import sinkscope; print(time.process_time() - start)"
    assert min(float(python(code)) for _ in range(3)) < IMPORT_BUDGET


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("sinkscope", {"torch", "transformers", "pandas", "pyarrow", "scipy", "matplotlib", "numpy"}),
        ("sinkscope.cli", {"torch", "transformers", "pandas", "pyarrow", "scipy", "matplotlib"}),
        ("sinkscope.artifact", {"torch", "transformers", "matplotlib"}),
        ("sinkscope.explain", {"torch", "transformers", "matplotlib"}),
        ("sinkscope.report", {"torch", "transformers", "matplotlib"}),
    ],
)
def test_import_leaves_heavy_packages_alone(module: str, unwanted: set[str]) -> None:
    loaded = python(f"import sys, {module}; print(*sorted(name for name in sys.modules if '.' not in name))")
    assert unwanted.isdisjoint(loaded.split())


def test_every_module_imports_without_optional_dependencies() -> None:
    code = f"""
import sys
from importlib import import_module

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Absent())
for name in {MODULES!r}:
    import_module(name)
print('all')
"""
    assert python(code) == "all"


def folder(room: str) -> Path:
    return PACKAGE.joinpath(*room.split("."))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_know_nothing_of_higher_rooms(room: str) -> None:
    allowed = ROOMS[room] | COMMON | {room.partition(".")[0]}
    inner = [folder(other) for other in ROOMS if other.startswith(f"{room}.")]
    for path in folder(room).rglob("*.py"):
        if any(path.is_relative_to(other) for other in inner):
            continue
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] == "sinkscope" and len(parts) > 1:
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_every_room_is_ruled() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {name for name in ROOMS if "." not in name}


def test_versions_agree() -> None:
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation is not None
    assert changelog is not None
    assert citation[1] == changelog[1] == sinkscope.__version__


def test_public_names_resolve() -> None:
    for name in sinkscope.__all__:
        assert getattr(sinkscope, name) is not None
    assert set(sinkscope.__all__) <= set(dir(sinkscope))


def test_rooms_are_there_without_an_import_of_their_own() -> None:
    code = "import sinkscope; print(sinkscope.attention.get('softpick').card.name, sinkscope.tasks.nop(p=0.25).p)"
    assert python(code) == "softpick 0.25"


def test_no_file_is_too_long() -> None:
    folders = ("src", "tests", "benchmarks", "docs")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_every_data_file_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packaged = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in (PACKAGE.parent / package.replace(".", "/")).glob(pattern)
    }
    built = {".py", ".pyc", ".so"}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in built}
    assert data - packaged == set()
    native = settings["ext-modules"][0]
    sources = {ROOT / name for name in (*native["sources"], *native["depends"])}
    assert sources == {path for path in data if path.suffix in {".c", ".h"}}
