"""The command line as its users meet it, with tiny models: fixtures of its tests."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from sinkscope.cli import main
from tests.cli._ended import Ended
from tests.models._tiny import WORDS, bert_tokenizer, llama_tokenizer, picture, save, save_processor

Cli = Callable[..., Ended]


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> Iterator[None]:
    """Saving tiny models would fill the terminal with progress bars."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    yield
    logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from more."""
    torch.set_num_threads(1)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command line in this process, as its console script would."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["sinkscope", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        code = end.value.code
        assert isinstance(code, int)
        return Ended(code, out, err)

    return run


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision model with its image processor: 2 layers of 2 heads, patches of 7 x 7."""
    folder = tmp_path_factory.mktemp("models") / "vit"
    save("dinov2", folder)
    save_processor(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with its tokenizer: 2 layers of 2 heads, at most 53 tokens."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    save("llama", folder)
    llama_tokenizer(folder, bos=True)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder with its tokenizer: 2 layers of 2 heads, at most 29 tokens."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    save("bert", folder)
    bert_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 7 pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(7):
        picture(37 + number, 41, number).save(folder / f"p{number}.png")
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 499 words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(random.Random(0).choices(WORDS, k=499)))
    return path
