"""The hub: asked for safetensors only, and not waited for where there is no network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors

from sinkscope._errors import ModelReferenceError, WeightsError
from sinkscope.models import _hub


def refuse(*_: Any, **__: Any) -> Any:
    raise socket.gaierror("Name or service not known")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr("urllib.request.getproxies", dict)


def test_a_name_that_does_not_resolve_is_not_waited_for(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port: asked.append(host))
    assert _hub.hub_answers()
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org:8080/hub")
    assert _hub.hub_answers() and asked == ["huggingface.co", "mirror.example.org"]
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert not _hub.hub_answers()


def test_a_proxy_resolves_names_itself(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy:3128"})
    assert _hub.hub_answers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not _hub.hub_answers()


@pytest.mark.parametrize(
    ("error", "kind", "found"),
    [
        (
            errors.LocalEntryNotFoundError("not cached"),
            ModelReferenceError,
            "the hub cannot be reached, or has no org/a",
        ),
        (errors.EntryNotFoundError("404"), WeightsError, "no model.safetensors in the hub repository org/a"),
        (ConnectionError("reset"), ModelReferenceError, "the hub cannot be reached, or has no org/a for you (timm:a)"),
    ],
)
def test_files_that_cannot_be_had(
    error: Exception, kind: type[Exception], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(kind) as caught:
        _hub.hub_weights("org/a", "model.safetensors", "timm:a")
    assert str(caught.value).startswith(found)


def test_offline_only_the_cache_is_looked_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []

    def download(repository: str, filename: str, *, local_files_only: bool) -> str:
        asked.append(local_files_only)
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert _hub.hub_weights("org/a", "a.safetensors", "timm:a") == tmp_path / "a.safetensors"
    assert asked == [True]
