"""Single files from the Hugging Face hub or its local cache."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from sinkscope._errors import ModelReferenceError, WeightsError


def hub_answers() -> bool:
    """Whether the hub's name resolves, so that a machine without network fails at once and not after retries.

    Behind a proxy the name need not resolve here; then only the request itself can tell.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    if urllib.request.getproxies():
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.getaddrinfo(endpoint.hostname, None)
    except OSError:
        return False
    return True


def hub_weights(repository: str, filename: str, reference: str) -> Path:
    """A safetensors file of a hub repository, downloaded once.

    Raises `WeightsError` if the repository has no such file, `ModelReferenceError` if it cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, local_files_only=not hub_answers()))
    except LocalEntryNotFoundError:
        raise unreachable(reference, repository) from None
    except EntryNotFoundError:
        raise WeightsError(
            f"no {filename} in the hub repository {repository}",
            "safetensors weights, because reading a pickle can run any code",
            "another model, or convert its weights to safetensors and load the file or folder",
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise unreachable(reference, repository) from error


def unreachable(reference: str, repository: str) -> ModelReferenceError:
    """The hub gave no answer, or knows no such repository, and the local cache does not hold it."""
    return ModelReferenceError(
        f"the hub cannot be reached, or has no {repository} for you ({reference})",
        "a network connection, an existing public name (or `hf auth login`), or a local folder",
        "check the name and the network, give a folder (hf:/path/to/model), or take a zoo model: `sinkscope models`",
    )
