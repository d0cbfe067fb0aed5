"""Runs that are killed, and runs of several processes, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sinkscope._errors import ArtifactError
from sinkscope.artifact import GalleryItem, Run, attach_run, open_artifact, open_run
from tests.artifact import _build as build

ROOT = Path(__file__).parents[2]
SIZES = (2, 1, 3)
LONG_AGO = 1_000_000_000


def _whole_run(run: Run) -> None:
    run.record_capture(build.COVERAGE, build.gram())
    for index, size in enumerate(SIZES):
        if index not in run.done():
            mass = np.full((build.LAYERS, build.HEADS, 7), index, dtype=np.float32)
            run.write_gallery(index, GalleryItem(str(index), "picture", mass), Image.new("RGB", (3, 5), (index, 0, 0)))
            build.write_part(run, index, size)
    run.finish(len(SIZES))


def _python(code: str, *arguments: object) -> subprocess.Popen[str]:
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'src')!r}]\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )


KILLED = """
import os, signal
from pathlib import Path
from sinkscope.artifact import open_run
from tests.artifact import _build as build
from tests.artifact.test_interrupted import _whole_run
left, replace = int(sys.argv[2]), Path.replace
def deadly(self, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = deadly
_whole_run(open_run(Path(sys.argv[1]), build.manifest()))
"""


def test_a_run_killed_before_any_of_its_renames_ends_with_the_same_tables(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    _whole_run(open_run(undisturbed, build.manifest()))
    deaths = 0
    for survived in range(0, 100, 2):
        process = _python(KILLED, killed, survived)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        assert list(killed.rglob(".*.tmp")), "the kill was meant to hit a file that is being written"
        deaths += 1
    assert deaths >= 4
    assert build.tables(killed) == build.tables(undisturbed)
    assert open_artifact(killed).manifest["n_inputs"] == sum(SIZES)


WRITER = """
from pathlib import Path
from sinkscope.artifact import attach_run
from tests.artifact import _build as build
run, rank = attach_run(Path(sys.argv[1])), int(sys.argv[2])
for index in range(10):
    if index % 2 == rank or index < 4:
        build.write_part(run, index, 1 + index % 3)
"""


def test_several_processes_write_one_run(tmp_path: Path) -> None:
    sizes = tuple(1 + index % 3 for index in range(10))
    build.write_run(open_run(tmp_path / "alone", build.manifest()), sizes)
    run = open_run(tmp_path / "shared", build.manifest())
    run.record_capture(build.COVERAGE, build.gram())
    writers = [_python(WRITER, tmp_path / "shared", rank) for rank in (0, 1)]
    while any(writer.poll() is None for writer in writers):
        open_run(tmp_path / "shared", build.manifest())
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    run.finish(len(sizes))
    assert build.tables(tmp_path / "shared") == build.tables(tmp_path / "alone")


def _temporary(folder: Path) -> Path:
    """A temporary file as this process leaves it when it is killed while writing a part."""
    with pytest.MonkeyPatch.context() as patch:
        names: list[Path] = []
        patch.setattr(Path, "replace", lambda self, target: names.append(self))
        open_run(folder, build.manifest())
    names[0].write_text("half a file")
    return names[0]


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_are_removed_once_their_writer_is_gone(tmp_path: Path) -> None:
    mine = _temporary(tmp_path)
    name, pid = mine.name, f"~{os.getpid()}~"
    token = name.rsplit("~", 1)[1]
    host = name.split("manifest.json.")[1].split("~")[0]
    variants = {
        "mine": name,
        "parent's": name.replace(pid, f"~{os.getppid()}~"),
        "dead": name.replace(pid, f"~{_dead_pid()}~"),
        "earlier process of my id": name.replace(token, "0123abcd.tmp"),
        "elsewhere": name.replace(f".{host}~", ".other-host~"),
        "elsewhere, long ago": name.replace(f".{host}~", ".old-host~"),
        "no file of ours": ".swap.tmp",
    }
    run = open_run(tmp_path, build.manifest())
    (tmp_path / "events").mkdir()
    for folder in (tmp_path, tmp_path / "events"):
        for variant in variants.values():
            (folder / variant).write_text("half a file")
        os.utime(folder / variants["elsewhere, long ago"], (LONG_AGO, LONG_AGO))
    open_run(tmp_path, build.manifest())
    for folder in (tmp_path, tmp_path / "events"):
        kept = {name for name, variant in variants.items() if (folder / variant).exists()}
        assert kept == {"mine", "parent's", "elsewhere", "no file of ours"}
    assert run.done() == frozenset()


def test_a_folder_with_nothing_but_a_leftover_is_free(tmp_path: Path) -> None:
    leftover = _temporary(tmp_path)
    leftover.rename(leftover.with_name(leftover.name.replace(f"~{os.getpid()}~", f"~{_dead_pid()}~")))
    open_run(tmp_path, build.manifest())
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert attach_run(tmp_path).manifest["options"]["batch_size"] == 2


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tmp_path, build.manifest())
    run.record_capture(build.COVERAGE, build.gram())
    before = build.tables(tmp_path)

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.write_part(run, 0, 2)
    assert build.tables(tmp_path) == before
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="lacks 1 of 1 parts"):
        run.finish()
