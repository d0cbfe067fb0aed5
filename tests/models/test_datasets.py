"""Pictures and texts out of parquet files and datasets of the hub."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sinkscope._errors import InputError, MissingExtraError
from sinkscope.models import Model, load, make_inputs
from sinkscope.models._pictures import read_picture
from tests.models._tiny import bert_tokenizer, picture, save, save_processor

COUNT, GROUP = 13, 5


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(31, 31 + number, seed=number).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("vision")
    save("dinov2", folder)
    save_processor(folder)
    return load(str(folder))


@pytest.fixture(scope="module")
def expected(model: Model) -> torch.Tensor:
    pictures = [picture(31, 31 + number, seed=number) for number in range(COUNT)]
    (batch,) = make_inputs(model, pictures, batch_size=COUNT).batches()
    values: torch.Tensor = batch.args[0]
    return values


def write(path: Path, column: str, values: list[Any], kind: Any = None) -> Path:
    table = pa.table({"label": list(range(len(values))), column: pa.array(values, kind)})
    pq.write_table(table, path, row_group_size=GROUP)
    return path


def as_structs(path: Path, column: str = "img", numbers: Any = range(COUNT)) -> Path:
    return write(path, column, [{"bytes": png(number), "path": None} for number in numbers])


@pytest.mark.parametrize("column", ["img", "image", "photo"])
@pytest.mark.parametrize("workers", [0, 3])
def test_pictures_in_a_parquet_file(
    column: str, workers: int, model: Model, expected: torch.Tensor, tmp_path: Path
) -> None:
    path = as_structs(tmp_path / "a.parquet", column)
    inputs = make_inputs(model, path, batch_size=3, num_workers=workers)
    batches = list(inputs.batches())
    assert [name for batch in batches for name in batch.names] == [str(number) for number in range(COUNT)]
    assert torch.equal(torch.cat([batch.args[0] for batch in batches]), expected)
    identity = inputs.identity
    assert (identity["kind"], identity["location"], identity["count"]) == ("dataset", str(path), COUNT)


def test_plain_bytes_and_paths_are_pictures_too(model: Model, expected: torch.Tensor, tmp_path: Path) -> None:
    bytes_file = write(tmp_path / "bytes.parquet", "content", [png(number) for number in range(COUNT)], pa.binary())
    (tmp_path / "files").mkdir()
    for number in range(COUNT):
        (tmp_path / "files" / f"{number}.png").write_bytes(png(number))
    paths_file = write(tmp_path / "paths.parquet", "image", [f"files/{number}.png" for number in range(COUNT)])
    for path in (bytes_file, paths_file):
        (batch,) = make_inputs(model, path, batch_size=COUNT).batches()
        assert torch.equal(batch.args[0], expected)


def test_a_folder_of_parquet_files_is_one_dataset(model: Model, expected: torch.Tensor, tmp_path: Path) -> None:
    as_structs(tmp_path / "train-00000-of-00002.parquet", numbers=range(7))
    as_structs(tmp_path / "train-00001-of-00002.parquet", numbers=range(7, COUNT))
    inputs = make_inputs(model, str(tmp_path), batch_size=4)
    assert torch.equal(torch.cat([batch.args[0] for batch in inputs.batches()]), expected)
    picture(40, 40).save(tmp_path / "a.png")
    assert make_inputs(model, str(tmp_path)).identity["kind"] == "images"
    assert make_inputs(model, str(tmp_path), kind="dataset").identity["count"] == COUNT


def test_row_groups_and_pictures_that_are_not_needed_are_not_read(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_structs(tmp_path / "a.parquet")
    opened: list[str] = []
    groups: list[int] = []

    def read(source: Path | bytes, name: str) -> Image.Image:
        opened.append(name)
        return read_picture(source, name)

    class File(pq.ParquetFile):  # type: ignore[misc]
        def read_row_group(self, number: int, **options: Any) -> Any:
            groups.append(number)
            return super().read_row_group(number, **options)

    monkeypatch.setattr(pq, "ParquetFile", File)
    monkeypatch.setattr("sinkscope.models._datasets.read_picture", read)
    inputs = make_inputs(model, path, batch_size=4)
    list(inputs.batches(skip=frozenset({0, 1})))
    assert opened == [f"row {number}" for number in range(8, COUNT)]
    assert groups == [1, 2]


def test_a_bad_row_is_named(model: Model, tmp_path: Path) -> None:
    values: list[Any] = [{"bytes": png(number), "path": None} for number in range(4)]
    values[2] = {"bytes": png(2)[:-50], "path": None}
    values[3] = {"bytes": None, "path": None}
    path = write(tmp_path / "a.parquet", "img", values)
    with pytest.raises(InputError, match=r"row 2, which cannot be read as a picture"):
        list(make_inputs(model, path).batches())
    (batch,) = make_inputs(model, path, skip_bad=True).batches()
    assert batch.names == ("0", "1") and list(batch.bad) == ["2", "3"]
    assert batch.bad["3"] == "row 3 without a picture"


@pytest.mark.parametrize(("columns", "what"), [({"label": [1]}, "none"), ({"one": [b"a"], "two": [b"b"]}, "several")])
def test_columns_that_do_not_tell(columns: dict[str, Any], what: str, model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=f"a.parquet with columns {', '.join(columns)}, {what} of pictures"):
        make_inputs(model, path)


def test_a_broken_parquet_file(model: Model, tmp_path: Path) -> None:
    path = as_structs(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"a.parquet, which is no readable parquet file"):
        make_inputs(model, path)


def test_texts_are_read_one_after_the_other_and_cut_into_windows(tmp_path: Path) -> None:
    save("bert", tmp_path)
    bert_tokenizer(tmp_path)
    model = load(str(tmp_path))
    path = write(tmp_path / "a.parquet", "text", ["the cat sat", "", "on the mat . dog", None, "ran far"])
    inputs = make_inputs(model, path, length=6)
    ids = [row for batch in inputs.batches() for row in batch.kwargs["input_ids"].tolist()]
    assert ids == [[2, 5, 6, 7, 8, 3], [2, 5, 9, 15, 10, 3]]
    assert inputs.identity["tokens_unused"] == 2
    assert make_inputs(model, path, length=6, limit=1).identity["count"] == 1


def hub(monkeypatch: pytest.MonkeyPatch, table: Any, splits: list[str]) -> list[tuple[str, str]]:
    asked: list[tuple[str, str]] = []

    def fetch(name: str, split: str) -> Any:
        asked.append((name, split))
        return table

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: splits)
    monkeypatch.setattr(datasets, "load_dataset", fetch)
    return asked


def test_a_dataset_of_the_hub(model: Model, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": png(number), "path": None} for number in range(COUNT)], "label": list(range(COUNT))}
    table = datasets.Dataset.from_dict(rows, features=features)
    asked = hub(monkeypatch, table, ["train", "test"])
    with pytest.raises(InputError, match=r"the dataset org/name without a split; expected one of train, test"):
        make_inputs(model, "org/name", kind="dataset")
    inputs = make_inputs(model, "org/name:test", kind="dataset", batch_size=COUNT)
    (batch,) = inputs.batches()
    assert asked == [("org/name", "test")] and inputs.identity["location"] == "org/name:test"
    assert torch.equal(batch.args[0], expected)
    hub(monkeypatch, table, ["only"])
    assert make_inputs(model, "org/name", kind="dataset").identity["location"] == "org/name:only"


def test_a_dataset_that_cannot_be_had(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> list[str]:
        raise ConnectionError("Couldn't reach 'org/name' on the Hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    with pytest.raises(InputError, match=r"the dataset org/name, which cannot be loaded .*Couldn't reach"):
        make_inputs(model, "org/name", kind="dataset")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError) as caught:
        make_inputs(model, "org/name", kind="dataset")
    assert caught.value.next_step == 'pip install "sinkscope[train]"'


def test_a_published_dataset(model: Model) -> None:
    folder = Path(os.environ.get("SINKSCOPE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = folder / "cifar10-test.parquet"
    if not path.is_file():
        pytest.skip(f"no {path}")
    inputs = make_inputs(model, path, batch_size=7, limit=10)
    assert [batch.names for batch in inputs.batches()] == [tuple("0123456"), tuple("789")]
    first = pq.ParquetFile(path).read_row_group(0, columns=["img"]).column(0)[9].as_py()["bytes"]
    image = Image.open(io.BytesIO(first))
    alone = next(make_inputs(model, [image]).batches())
    assert torch.equal(list(inputs.batches())[1].args[0][2], alone.args[0][0])
