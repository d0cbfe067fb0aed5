"""Several processes: one line when they fail, and models whose heads are spread over processes or devices."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented there, re-exported silently
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope
from sinkscope._world import World, announced, fails_first, joined
from sinkscope.models._placement import seeded
from tests._tables import same
from tests.models._tiny import WORDS, llama_tokenizer, picture, save, save_processor


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`sinkscope diagnose` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sinkscope"]
    return subprocess.run(
        [*command, "diagnose", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def our_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What sinkscope itself has said on standard error, tracebacks of ours included; torchrun says much more."""
    return [line for line in done.stderr.splitlines() if line.startswith("sinkscope: ") or "/sinkscope/" in line]


def test_one_process_is_a_world_of_its_own() -> None:
    assert announced() == World(0, 1)
    with joined() as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
        world.wait()
        assert not torch.distributed.is_initialized()
    assert fails_first()


def test_of_many_that_fail_only_the_first_has_something_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    settings = {"RANK": 1, "WORLD_SIZE": 3, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    assert announced() == World(1, 3)
    assert [fails_first() for _ in range(3)] == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert fails_first(), "the run was started anew"
    monkeypatch.delenv("MASTER_PORT")
    assert fails_first(), "nobody to ask"


def test_several_processes_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(sinkscope.SinkError, match=r"several processes without out; .*; next: pass out=FOLDER"):
        sinkscope.diagnose(torch.nn.Linear(2, 3), torch.zeros(5, 2))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "vit"
    save("vit", folder)
    save_processor(folder)
    return folder


@pytest.mark.slow
def test_a_mistake_of_one_process_is_one_line_and_ends_all(vit: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for number in range(7):
        picture(33, 47, number).save(folder / f"{number}.png")
    (folder / "3.png").write_text("no picture")  # of the second batch, that of the second process
    done = torchrun(vit, "--images", folder, "--out", out, "--batch-size", 2)
    assert done.returncode != 0
    assert done.stdout == ""
    assert (out / "manifest.json").is_file() == bool(list(out.glob("events/*"))), "kept if the other had measured"
    (line,) = our_lines(done)
    assert line.startswith(f"sinkscope: {folder / '3.png'}, which cannot be read as a picture")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 heads, 2 of keys and values, weights large enough for sinks."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    config = LlamaConfig(
        vocab_size=101, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=37, max_position_embeddings=53, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with seeded(0):
        module = LlamaForCausalLM(config)
    for layer in module.model.layers:
        layer.self_attn.q_proj.weight.data *= 20
        layer.self_attn.k_proj.weight.data *= 20
    module.save_pretrained(folder)
    llama_tokenizer(folder, bos=True)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(random.Random(0).choices(WORDS, k=499)))
    return path


@pytest.mark.slow
def test_heads_spread_over_processes_make_the_table_of_one(llama: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers needs accelerate for tensor parallel models")
    done = torchrun(llama, "--text", text, "--out", tmp_path / "two", "--length", 29, "--tp-plan", "auto")
    assert done.returncode == 0, done.stderr
    one = sinkscope.diagnose(str(llama), text, tmp_path / "one", kind="text", length=29)
    two = sinkscope.open(tmp_path / "two")
    assert (one.events["mass"] >= 0.3).any()
    same(two.events, one.events, 1e-5)
    same(two.heads, one.heads, 1e-4)
    for part in ("coverage", "inputs", "model", "options", "n_inputs", "n_tokens"):
        assert two.manifest[part] == one.manifest[part], part
    for name, values in one.artifact.vectors.items():
        torch.testing.assert_close(torch.tensor(two.artifact.vectors[name]), torch.tensor(values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("processes", "plan", "model", "names"),
    [
        (3, "auto", "llama", ["num_attention_heads=4, num_key_value_heads=2) with 3 processes", "--nproc-per-node=2"]),
        (2, "colwise", "llama", ["tp_plan 'colwise'", "--tp-plan auto"]),
        (2, "auto", "vit", ["for which transformers has no plan (ViTConfig)", "leave tp_plan out"]),
    ],
)
def test_plans_that_cannot_be(
    processes: int,
    plan: str,
    model: str,
    names: list[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sinkscope.models._spread.find_spec", lambda name: True)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(sinkscope.SinkError) as error:
        sinkscope.load(str(request.getfixturevalue(model)), tp_plan=plan)
    for name in names:
        assert name in str(error.value)
    with pytest.raises(sinkscope.SinkError, match="device_map and tp_plan together"):
        sinkscope.load(str(request.getfixturevalue(model)), tp_plan=plan, device_map="cpu")


OFFLOADED = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.norm", "lm_head"), "cpu")


@pytest.mark.parametrize(
    "device_map", ["auto", "cpu", OFFLOADED | {"model.layers.1": "disk", "model.layers.2": "disk"}]
)
def test_a_device_map_changes_no_row(device_map: object, llama: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers needs accelerate for device maps")
    spread = sinkscope.diagnose(str(llama), text, tmp_path / "spread", kind="text", limit=5, device_map=device_map)
    whole = sinkscope.diagnose(str(llama), text, tmp_path / "whole", kind="text", limit=5)
    same(spread.events, whole.events)
    assert spread.manifest["model"] == whole.manifest["model"]
