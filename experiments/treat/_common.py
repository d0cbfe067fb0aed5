"""What the scripts of this folder share: options, tables that a second run goes on with, intervals, figures."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sinkscope._errors import InputError
from sinkscope.artifact import replacing, write_text
from sinkscope.explain import RESAMPLES
from sinkscope.explain._resamples import intervals, resample_weights, weighted_means
from sinkscope.models import Inputs, Model, make_inputs
from sinkscope.report._style import RC
from sinkscope.train.tuning import final_tokens

RESULTS = Path(__file__).parents[1] / "results"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder with images/ and text.txt")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    made.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs")
    made.add_argument("--tables", action="store_true", help="only tables and figure, of what is there")
    return made


class Study:
    """One folder of results: rows that are there are not made again.

    - `rows.parquet`: what was measured; `keys` tell rows apart that are made together.
    - `log.txt`: what was printed. `run.json`: options, packages, number of processors.
    """

    def __init__(self, given: argparse.Namespace, name: str, keys: Sequence[str], **facts: Any) -> None:
        if given.data is None and not given.tables:
            raise SystemExit("--data is missing")
        self.folder = given.results / f"treat-{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keys = list(keys)
        if given.tables:
            return
        facts = {"quick": given.quick, **facts}
        path = self.folder / "run.json"
        if path.is_file() and (before := json.loads(path.read_text())["options"]) != json.loads(json.dumps(facts)):
            changed = [key for key in {**before, **facts} if before.get(key) != facts.get(key)]
            raise SystemExit(f"{self.folder} was made with other {', '.join(changed)}: empty it first")
        packages = {name: version(name) for name in ("sinkscope", "torch", "transformers")}
        run = {"options": facts, "packages": packages, "processors": os.cpu_count()}
        write_text(path, json.dumps(run, indent=2) + "\n")

    def has(self, **key: Any) -> bool:
        """Whether there are rows with this key."""
        table = self.table()
        return not table.empty and bool((table[list(key)] == pd.Series(key)).all(axis=1).any())

    def add(self, rows: Iterable[dict[str, Any]], **key: Any) -> None:
        """Adds the rows of one key."""
        new = pd.DataFrame([{**key, **row} for row in rows])
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # several processes may share a study
            table = pd.concat([found for found in (self.table(), new) if not found.empty], ignore_index=True)
            with replacing(self.folder / "rows.parquet") as temporary:
                table.to_parquet(temporary, index=False)
        finally:
            os.close(folder)

    def add_to(self, name: str, rows: Iterable[dict[str, Any]], **key: Any) -> None:
        """Adds rows to a further table, a CSV file; before `add`, which marks the key as done."""
        path = self.folder / name
        table = pd.DataFrame([{**key, **row} for row in rows])
        table.to_csv(path, mode="a", header=not path.is_file(), index=False, float_format="%.6g")

    def further(self, name: str) -> pd.DataFrame:
        """A further table; a run that was killed may have left rows that the next one made again."""
        return pd.read_csv(self.folder / name).drop_duplicates(ignore_index=True)

    def table(self) -> pd.DataFrame:
        """All rows so far."""
        path = self.folder / "rows.parquet"
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=self.keys)

    def say(self, text: str) -> None:
        """Prints, and writes to the log."""
        print(text, flush=True)  # noqa: T201 - a script's log
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def findings(self, *parts: str) -> None:
        """Writes the tables."""
        write_text(self.folder / "findings.md", "\n\n".join(parts) + "\n")

    def figure(self, name: str, figure: plt.Figure) -> None:
        """Writes a figure."""
        with matplotlib.rc_context(RC):
            figure.savefig(self.folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)


class Clock:
    """Seconds of processor time: what this machine does beside it does not count."""

    def __init__(self) -> None:
        self._began = time.process_time()

    def seconds(self) -> float:
        return time.process_time() - self._began


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean with its 95% bootstrap interval (BCa from eight values on), as verdicts have it; NaN under three values."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < 3 or np.ptp(values) == 0:
        return float(values.mean()), np.nan, np.nan
    means = weighted_means(resample_weights(n, RESAMPLES, seed), values[:, None])
    low, high = intervals(means, n, np.array([n]))
    return float(means[0, 0]), float(low[0]), float(high[0])


def shown(values: Any, digits: int = 3) -> str:
    """Mean and interval in words."""
    middle, low, high = mean_interval(np.asarray(values, dtype=np.float64))
    text = f"{middle:.{digits}g}"
    return text if np.isnan(low) else f"{text} [{low:.{digits}g}, {high:.{digits}g}]"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table."""
    lines = [" | ".join(map(str, row)) for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(f"| {line} |" for line in lines)


def panels(count: int, width: float = 4.2, height: float = 3.6) -> tuple[plt.Figure, Any]:
    """A figure with so many panels side by side."""
    with matplotlib.rc_context(RC):
        figure, axes = plt.subplots(1, count, figsize=(width * count, height), layout="constrained", squeeze=False)
    return figure, axes[0]


def token_ids(model: Model, path: Path) -> Tensor:
    """Ids of a whole text, without special tokens, of shape (tokens,)."""
    assert model.prepare.text is not None
    return torch.tensor(model.prepare.text().content(path.read_text(encoding="utf-8")))


def spans(ids: Tensor, count: int, length: int, overlap: bool = False) -> Tensor:
    """Parts of a text at even distances, of shape (count, length), the last at its end if they may overlap."""
    needed = length if overlap else count * length
    if needed > len(ids):
        raise InputError(f"a text of {len(ids)} tokens", f"{needed}", "ask for fewer or shorter spans")
    step = (len(ids) - length) // max(1, count - 1) if overlap else len(ids) // count
    starts = [number * step for number in range(count)]
    return torch.stack([ids[start : start + length] for start in starts])


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every token, (..., tokens) of logits (..., tokens, words)."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none").view(
        targets.shape
    )


def language_losses(model: Model, ids: Tensor, *, batch_size: int = 8, **kwargs: Any) -> np.ndarray:
    """Nats per token of every text, (texts,); ids are (texts, tokens). `kwargs` go to the model."""
    module: Any = model.module
    losses = []
    with torch.inference_mode():
        for part in ids.split(batch_size):
            logits = module(part, use_cache=False, **kwargs).logits
            losses.append(nats(logits[:, :-1], part[:, 1:]).mean(1))
    return torch.cat(losses).double().numpy()


def sink_heads(name: str, verdict: str | None = None) -> tuple[tuple[int, int], ...]:
    """Layer and head of the sink heads that results/real has found, of one verdict or of all."""
    table = pd.read_csv(RESULTS / "real" / name / "heads.csv").query("kind == 'sink'")
    chosen = table if verdict is None else table[table["verdict"] == verdict]
    return tuple(zip(chosen["layer"].tolist(), chosen["head"].tolist(), strict=True))


def stacked(supply: Inputs) -> Tensor:
    """All inputs as one tensor, in batches of one shape."""
    return torch.cat([b.args[0] if b.args else next(iter(b.kwargs.values())) for b in supply.batches()])


def final(model: Model, tensor: Tensor, batch_size: int = 16) -> Tensor:
    """Final tokens of inputs, (inputs, tokens, width)."""
    found = []
    with final_tokens(model.module) as seen:
        for batch in make_inputs(model, tensor, batch_size=batch_size).batches():
            model.run(batch)
            found.append(seen.tokens.clone())
    return torch.cat(found)


def agreement(tokens: Tensor, wanted: Tensor) -> list[dict[str, float]]:
    """Of every input: the squared change of its final tokens by their square, and the mean cosine of tokens."""
    own, wanted = tokens.double(), wanted.double()
    errors = (own - wanted).square().sum((1, 2)) / wanted.square().sum((1, 2))
    cosines = torch.cosine_similarity(own, wanted, dim=-1).mean(1)
    return [{"error": float(a), "cosine": float(b)} for a, b in zip(errors, cosines, strict=True)]
