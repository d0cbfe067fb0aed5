"""Pictures to batches: preprocessing, order, resuming, ranks, threads, bad pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from sinkscope._errors import InputError, OptionError
from sinkscope.models import Batch, Inputs, Model, load, make_inputs
from sinkscope.models._pictures import read_picture
from tests.models._tiny import picture, save, save_processor

COUNT = 11


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    save("dinov2", folder)
    save_processor(folder)
    return load(str(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(COUNT):
        picture(31 + number, 43, seed=number).save(tmp_path / f"{number:02}.png")
    (tmp_path / "notes.txt").write_text("ignored")
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that have been read."""
    names: list[str] = []

    def read(source: Path | bytes, name: str) -> Image.Image:
        names.append(Path(name).name)
        return read_picture(source, name)

    monkeypatch.setattr("sinkscope.models._picture_items.read_picture", read)
    return names


def same(one: Batch, other: Batch) -> bool:
    return (one.index, one.names, one.layouts) == (other.index, other.names, other.layouts) and torch.equal(
        one.args[0], other.args[0]
    )


def test_preprocessing_is_what_the_config_says(model: Model) -> None:
    image = picture(61, 83)
    (batch,) = make_inputs(model, [image]).batches()
    levels = F.resize(torch.tensor(np.array(image)).permute(2, 0, 1), [32, 43], F.InterpolationMode.BICUBIC)
    levels = levels[:, 2:30, 7:35]
    mean, std = torch.tensor([0.5, 0.25, 0.125])[:, None, None], torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    assert torch.allclose(batch.args[0][0], (levels / 255 - mean) / std, atol=1e-6)
    seen = batch.pictures[0]
    assert seen is not None and torch.equal(torch.tensor(np.array(seen)).permute(2, 0, 1), levels)
    assert batch.valid is None and batch.layouts[0] is not None and len(batch.layouts[0]) == 17


def test_another_size_sees_the_same_part_of_the_picture(model: Model) -> None:
    image = Image.fromarray(np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)).convert("RGB")
    small, large = (next(make_inputs(model, [image], size=size).batches()) for size in (28, 56))
    assert large.args[0].shape == (1, 3, 56, 56)
    assert large.layouts[0] is not None and len(large.layouts[0]) == 65
    halved = torch.nn.functional.avg_pool2d(large.args[0], 2)
    assert torch.allclose(halved, small.args[0], atol=0.05)


def test_a_folder_gives_its_pictures_in_order_with_relative_names(model: Model, folder: Path) -> None:
    inputs = make_inputs(model, str(folder), batch_size=3)
    batches = list(inputs.batches())
    assert inputs.n_batches == 4 and [batch.index for batch in batches] == [0, 1, 2, 3]
    assert [name for batch in batches for name in batch.names] == [f"{number:02}.png" for number in range(COUNT)]
    assert [len(batch.names) for batch in batches] == [3, 3, 3, 2]


def test_identity_changes_with_every_picture_and_nothing_else(model: Model, folder: Path) -> None:
    identity = make_inputs(model, folder).identity
    assert {**identity, "sha256": ""} == {
        "count": COUNT, "kind": "images", "location": str(folder), "sha256": "", "ignored_files": 1, "size": None,
    }  # fmt: skip
    assert make_inputs(model, folder, batch_size=2, num_workers=2).identity == identity
    assert make_inputs(model, folder, limit=5).identity["count"] == 5
    assert make_inputs(model, folder, limit=5).identity["sha256"] != identity["sha256"]
    picture(41, 43, seed=99).save(folder / "10.png")
    changed = make_inputs(model, folder)
    assert changed.identity["sha256"] != identity["sha256"]
    assert make_inputs(model, folder, limit=10).identity == make_inputs(model, folder, limit=10).identity


@pytest.mark.parametrize("workers", [0, 3])
def test_resumed_and_distributed_runs_give_the_same_batches(workers: int, model: Model, folder: Path) -> None:
    def make() -> Inputs:
        return make_inputs(model, folder, batch_size=2, limit=9, num_workers=workers)

    whole = {batch.index: batch for batch in make().batches()}
    assert sorted(whole) == [0, 1, 2, 3, 4]
    resumed = list(make().batches(skip=frozenset({0, 3})))
    assert [batch.index for batch in resumed] == [1, 2, 4]
    shares = [list(make().batches(skip=frozenset({1}), rank=rank, world=3)) for rank in range(3)]
    assert [[batch.index for batch in share] for share in shares] == [[0, 3], [4], [2]]
    assert all(same(batch, whole[batch.index]) for batch in (*resumed, *shares[0], *shares[1], *shares[2]))


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_of_skipped_batches_are_not_read(workers: int, model: Model, folder: Path, opened: list[str]) -> None:
    inputs = make_inputs(model, folder, batch_size=2, num_workers=workers)
    assert inputs.n_batches == 6 and inputs.identity and opened == []
    list(inputs.batches(skip=frozenset({0, 1, 3}), rank=1, world=2))
    assert sorted(opened) == ["10.png"]


def test_threads_stop_when_the_reader_does(model: Model, folder: Path, opened: list[str]) -> None:
    batches = make_inputs(model, folder, batch_size=1, num_workers=2).batches()
    assert next(batches).names == ("00.png",)
    batches.close()  # type: ignore[attr-defined]
    assert set(opened) <= {"00.png", "01.png", "02.png"}


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def shrink(path: Path) -> None:
    picture(1, 1).save(path)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(spoil, "which cannot be read as a picture"), (shrink, "a picture of 1 x 1 pixels")],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_named_and_left_out_only_on_request(
    harm: Callable[[Path], None], reason: str, workers: int, model: Model, folder: Path
) -> None:
    harm(folder / "04.png")
    with pytest.raises(InputError, match=f"04.png, {reason}"):
        list(make_inputs(model, folder, batch_size=3, num_workers=workers).batches())
    batches = list(make_inputs(model, folder, batch_size=3, skip_bad=True, num_workers=workers).batches())
    assert [batch.names for batch in batches][1] == ("03.png", "05.png")
    assert [len(batch.names) for batch in batches] == [3, 2, 3, 2]
    ((name, why),) = batches[1].bad.items()
    assert name == "04.png" and reason in why
    assert not any(batch.bad for batch in batches if batch.index != 1)


def test_a_batch_of_bad_pictures_only_is_empty(model: Model, folder: Path) -> None:
    for number in (2, 3):
        spoil(folder / f"{number:02}.png")
    batch = list(make_inputs(model, folder, batch_size=2, skip_bad=True).batches())[1]
    assert (batch.index, batch.names, sorted(batch.bad)) == (1, (), ["02.png", "03.png"])


@pytest.mark.parametrize("size", [(6, 40), (40, 6)])
def test_a_picture_smaller_than_a_patch_is_refused(size: tuple[int, int], model: Model) -> None:
    with pytest.raises(InputError, match=f"a picture of {size[1]} x {size[0]} pixels; expected at least one patch"):
        list(make_inputs(model, [picture(*size)]).batches())


def test_one_picture_and_lists_of_paths(model: Model, folder: Path) -> None:
    whole = next(make_inputs(model, folder, batch_size=2).batches())
    paths = [folder / "00.png", folder / "01.png"]
    for given in (paths, [str(path) for path in paths]):
        batch = next(make_inputs(model, given).batches())
        assert torch.equal(batch.args[0], whole.args[0]) and batch.names == tuple(str(path) for path in paths)
    for single in (paths[0], Image.open(paths[0])):
        batch = next(make_inputs(model, single).batches())
        assert torch.equal(batch.args[0], whole.args[0][:1])


@pytest.mark.parametrize(
    ("inputs", "options", "found"),
    [
        ("{}/empty", {}, "no pictures in {}/empty (0 other files)"),
        ("{}/nowhere", {}, "no file or folder {}/nowhere"),
        ("{}/text", {}, "no pictures in {}/text (1 other files)"),
        ("{}/text", {"kind": "dataset"}, "no parquet file in {}/text"),
        ("{}/text/a.txt", {}, "text for {model}, a model that takes vision"),
        ("{}/text", {"kind": "text"}, "the folder {}/text as text"),
    ],
)
def test_inputs_that_are_nothing(
    inputs: str, options: dict[str, Any], found: str, model: Model, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a text")
    with pytest.raises(InputError) as caught:
        make_inputs(model, inputs.format(tmp_path), **options)
    assert caught.value.found == found.format(tmp_path, model=model.reference)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"limit": 0}, "limit=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"length": 7}, "length for .*, which takes vision"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], found: str, model: Model, folder: Path) -> None:
    with pytest.raises(OptionError, match=found):
        make_inputs(model, folder, **options)


def test_a_size_that_is_no_multiple_of_the_patch(model: Model, folder: Path) -> None:
    with pytest.raises(InputError, match=r"a multiple of the patch, 7 x 7 pixels") as caught:
        make_inputs(model, folder, size=30)
    assert caught.value.next_step == "--size 28"


def test_a_model_of_fixed_size_interpolates_its_positions_when_asked(tmp_path: Path) -> None:
    save("vit", tmp_path)
    save_processor(tmp_path)
    model = load(str(tmp_path))
    plain, larger = (next(make_inputs(model, [picture(70, 70)], size=size).batches()) for size in (None, 42))
    assert (plain.kwargs, larger.kwargs) == ({}, {"interpolate_pos_encoding": True})
    assert model.run(larger).logits.shape == (1, 2)


def test_a_model_without_preprocessing(tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    with pytest.raises(InputError, match=r"no usable image preprocessing for") as caught:
        make_inputs(load(str(tmp_path)), [picture(40, 40)])
    assert caught.value.expected == "preprocessor_config.json beside the model"


def test_a_processor_that_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    save_processor(tmp_path, do_center_crop=False, size={"shortest_edge": 28})
    model = load(str(tmp_path))
    wide = [picture(40, 60), picture(40, 80)]
    batches = list(make_inputs(model, wide, batch_size=1).batches())
    grids = [(layout.rows[-1], layout.cols[-1]) for batch in batches for layout in batch.layouts if layout]
    assert grids == [(3, 5), (3, 7)]
    with pytest.raises(InputError, match=r"different sizes") as caught:
        list(make_inputs(model, wide).batches())
    assert caught.value.next_step == "--batch-size 1"
