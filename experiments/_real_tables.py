"""Tables and figures of experiments/real.py, from the CSV files that it has written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

WORDS = ("nop", "bias", "broadcast", "inert", "undecided")
COLOURS = {"nop": "#0072B2", "bias": "#E69F00", "broadcast": "#D55E00", "inert": "#999999", "undecided": "#000000"}
TITLES = {"dinov2": "DINOv2-S (saliency)", "smollm2": "SmolLM2-135M", "minilm": "MiniLM-L6"}


def write_tables(root: Path) -> None:
    """`findings.md`, `effects.svg` and `layers.svg` of every model that has been run."""
    found = {name: pd.read_csv(root / name / "heads.csv") for name in TITLES if (root / name / "heads.csv").is_file()}
    prune = {name: pd.read_csv(root / name / "prune.csv") for name in found}
    facts = {name: json.loads((root / name / "run.json").read_text()) for name in found}
    parts = ["### Verdicts", _counts(found, facts), "### The literature's rules beside the verdicts"]
    parts += [_rules(found), "### Is a broadcast content or constant?", _content(found)]
    parts += ["### Early and late layers", _depth(found), "### Without the nop heads", _pruned(prune)]
    parts += ["### Matched on depth, mass and value norm", _matched(found)]
    (root / "findings.md").write_text("\n\n".join(parts) + "\n")
    _effect_figure(found, root / "effects.svg")
    _layer_figure(found, root / "layers.svg")


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [" | ".join(map(str, row)) for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(f"| {line} |" for line in lines)


def _sinks(table: pd.DataFrame) -> pd.DataFrame:
    """Sink heads that were verified."""
    return table[(table["kind"] == "sink") & table["verdict"].notna()]


def _counts(found: dict[str, pd.DataFrame], facts: dict[str, dict]) -> str:
    rows = []
    for name, table in found.items():
        sinks = _sinks(table)
        counts = [int((sinks["verdict"] == word).sum()) for word in WORDS]
        verified = f"{sinks['n_verified'].min():.0f} to {sinks['n_verified'].max():.0f}"
        of_all = int((table["kind"] == "sink").sum())
        rows.append([TITLES[name], facts[name]["n_inputs"], len(table), of_all, len(sinks), *counts, verified])
    return markdown(["model", "inputs", "heads", "sink heads", "verified", *WORDS, "inputs per verdict"], rows)


def _rules(found: dict[str, pd.DataFrame]) -> str:
    rows = []
    for name, table in found.items():
        sinks = _sinks(table)
        for rule, column in (("fesser", "fesser_says"), ("fesser-counts", "counts_says")):
            for said, of in sinks.groupby(column):
                rows.append([TITLES[name], f"`{rule}`", said, *((of["verdict"] == word).sum() for word in WORDS)])
    return markdown(["model", "rule", "it says", *WORDS], rows)


def _content(found: dict[str, pd.DataFrame]) -> str:
    rows = []
    for name, table in found.items():
        for _, head in _sinks(table).query("fesser_says == 'broadcast' or counts_says == 'broadcast'").iterrows():
            rows.append(
                [TITLES[name], f"{head['layer']:.0f}.{head['head']:.0f}", head["fesser_says"], head["counts_says"]]
                + [
                    _interval(head, column)
                    for column in ("content_share", "causal_content_share", "effect_zero", "effect_mean")
                ]
                + [head["verdict"]]
            )
    titles = ["model", "head", "`fesser`", "`fesser-counts`", "content share, of energy", "content share, causal"]
    return markdown([*titles, "effect of zero", "effect of mean", "verdict"], rows[:40])


def _interval(row: pd.Series, column: str) -> str:
    if not np.isfinite(row.get(column, np.nan)):
        return "–"
    return f"{row[column]:.3g} [{row[f'{column}_low']:.3g}, {row[f'{column}_high']:.3g}]"


def _depth(found: dict[str, pd.DataFrame]) -> str:
    rows = []
    for name, table in found.items():
        third = np.minimum(2, table["layer"] * 3 // (table["layer"].max() + 1))
        for number, label in enumerate(("first third", "middle", "last third")):
            sinks = _sinks(table[third == number])
            if sinks.empty:
                continue
            ratio = (sinks["effect_zero"] / sinks["effect_ordinary"]).median()
            counts = [int((sinks["verdict"] == word).sum()) for word in WORDS]
            rows.append(
                [
                    TITLES[name],
                    label,
                    len(sinks),
                    *counts,
                    f"{ratio:.2f}",
                    f"{sinks['causal_content_share'].median():.2f}",
                ]
            )
    return markdown(["model", "layers", "verified", *WORDS, "zero / ordinary", "content share"], rows)


def _pruned(prune: dict[str, pd.DataFrame]) -> str:
    rows = []
    for name, table in prune.items():
        for removed, of in table.groupby("removed", sort=False):
            loss = f"{of['loss_before'].mean():.3f} → {_spread(of['loss'])}" if "loss" in of else "–"
            rows.append(
                [
                    TITLES[name],
                    removed,
                    _spread(of["heads"]),
                    _spread(of["tokens_change"]),
                    _spread(of["pooled_cosine"]),
                    loss,
                ]
            )
    titles = [
        "model",
        "writes removed of",
        "heads",
        "change of final tokens",
        "cosine of pooled tokens",
        "loss, nats per token",
    ]
    return markdown(titles, rows)


def _spread(values: pd.Series) -> str:
    middle = f"{values.median():.3g}"
    return middle if values.nunique() == 1 else f"{middle} ({values.min():.3g} to {values.max():.3g})"


def _matched(found: dict[str, pd.DataFrame]) -> str:
    """Nop heads beside heads that write, paired by what the objection names."""
    rows = []
    for name, table in found.items():
        sinks = _sinks(table).assign(ratio=lambda t: t["effect_zero"] / t["effect_ordinary"])
        silent, writing = sinks[sinks["verdict"] == "nop"], sinks[sinks["verdict"].isin(["bias", "broadcast"])]
        for label, pairs in (
            ("none", [(a, b) for a in silent.index for b in writing.index]),
            ("depth (one layer) and mass (0.1)", list(_pairs(silent, writing, {"layer": 1, "mass_median": 0.1}))),
            ("value norm (a fifth)", list(_pairs(silent, writing, {"log_value": np.log(1.2)}))),
        ):
            if not pairs:
                rows.append([TITLES[name], label, 0, "–", "–"])
                continue
            one, other = zip(*pairs, strict=True)
            values = [f"{sinks.loc[list(places), 'ratio'].median():.2f}" for places in (one, other)]
            rows.append([TITLES[name], label, f"{len(set(one))} and {len(set(other))}", *values])
    return markdown(["model", "matched on", "nop and writing heads", "zero / ordinary, nop", "the same, writing"], rows)


def _pairs(one: pd.DataFrame, other: pd.DataFrame, within: dict[str, float]) -> Iterator[tuple[int, int]]:
    one, other = (t.assign(log_value=np.log(t["value_ratio_median"].clip(lower=1e-6))) for t in (one, other))
    for a, left in one.iterrows():
        for b, right in other.iterrows():
            if all(abs(left[column] - right[column]) <= width for column, width in within.items()):
                yield a, b


def _effect_figure(found: dict[str, pd.DataFrame], path: Path) -> None:
    figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 4), layout="constrained", squeeze=False)
    for ax, (name, table) in zip(axes[0], found.items(), strict=True):
        for word in WORDS:
            of = table[table["verdict"] == word]
            ax.scatter(of["effect_ordinary"], of["effect_zero"], s=14, c=COLOURS[word], label=f"{word} ({len(of)})")
        ends = (1e-3, 1)
        ax.plot(ends, ends, c="#bbbbbb", lw=0.8, zorder=0)
        ax.set(xscale="log", yscale="log", title=TITLES[name], xlabel="effect of an ordinary value at the sink")
        ax.set(xlim=ends, ylim=ends)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        ax.legend(fontsize=7)
    axes[0, 0].set_ylabel("effect of zeroing the sink's value")
    _save(figure, path)


def _layer_figure(found: dict[str, pd.DataFrame], path: Path) -> None:
    figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3), layout="constrained", squeeze=False)
    for ax, (name, table) in zip(axes[0], found.items(), strict=True):
        base = np.zeros(table["layer"].max() + 1)
        for word in WORDS:
            counts = np.bincount(table.loc[table["verdict"] == word, "layer"], minlength=len(base))
            ax.bar(np.arange(len(base)), counts, bottom=base, color=COLOURS[word], label=word)
            base += counts
        ax.set(title=TITLES[name], xlabel="layer", ylim=(0, table["head"].max() + 1))
    axes[0, 0].set_ylabel("sink heads")
    axes[0, -1].legend(fontsize=7)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "sinkscope"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
