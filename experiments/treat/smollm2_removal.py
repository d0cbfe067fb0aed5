"""What is the first token good for? SmolLM2-135M without it, in three ways, and without as many random tokens.

    python experiments/treat/smollm2_removal.py --data FOLDER [--quick]

The loss of the language model on 24 windows of 256 tokens with sinks removed by `RemoveSinks`: in all heads, in all
that results/real calls sink heads, in its nop heads, in its other sink heads (fewer), and in as many nop heads as these
(three draws); the first token or the first four. Beside the edits of all heads, as many random keys of the same window,
in three draws. Differences from the untouched model are
paired by window, with bootstrap intervals over windows. A diagnosis of the edited model on eight windows tells where
its sinks are then. Written to results/treat-smollm2-removal: `rows.parquet` (one row per window), `sinks.csv`,
`findings.md`, `loss.svg`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import RESULTS, Clock, Study, language_losses, markdown, panels, parser, shown, spans, token_ids
from torch import Tensor

import sinkscope
from sinkscope.models import Model
from sinkscope.report._style import BLUE, EMPTY, INK
from sinkscope.treat import RemoveSinks

HOWS = ("mask", "zero", "redirect")
DRAWS = 3
DIAGNOSED = 8


def main() -> None:
    given = parser(__doc__).parse_args()
    texts, length = (4, 64) if given.quick else (24, 256)
    study = Study(given, "smollm2-removal", ("where", "how", "keys", "draw"), texts=texts, length=length)
    if not given.tables:
        model = sinkscope.load("zoo:smollm2-135m")
        ids = spans(token_ids(model, given.data / "text.txt"), texts, length)
        for key, removal in cases(1 if given.quick else DRAWS):
            if study.has(**key):
                continue
            clock = Clock()
            edited = model if removal is None else sinkscope.treat(model, removal)
            losses = language_losses(edited, ids)
            if key["draw"] == 0:
                study.add_to("sinks.csv", sinks_of(edited, ids[:DIAGNOSED, :64]), **key)
            study.add(({"text": text, "loss": loss} for text, loss in enumerate(losses)), **key)
            study.say(f"{key}: {losses.mean():.3f} nats, {clock.seconds():.0f} s")
    write(study)


def cases(draws: int) -> Iterator[tuple[dict[str, Any], RemoveSinks | None]]:
    """All edits, with what tells them apart; `draw` is 0 for what is not drawn."""
    yield {"where": "all heads", "how": "none", "keys": "none", "draw": 0}, None
    for how in HOWS:
        for which, name in (("first", "first token"), ((0, 1, 2, 3), "first four")):
            for draw in range(draws + 1):
                keys = name if draw == 0 else f"random, as many as {name}"
                removal = RemoveSinks(how, which, random=draw > 0, seed=draw)
                yield {"where": "all heads", "how": how, "keys": keys, "draw": draw}, removal
    table = pd.read_csv(RESULTS / "real" / "smollm2" / "heads.csv").query("kind == 'sink'")
    nop = table[table["verdict"] == "nop"]
    for how in HOWS:
        every = RemoveSinks(how, "first", heads=pairs(table))
        yield {"where": "all sink heads", "how": how, "keys": "first token", "draw": 0}, every
        others = table.drop(nop.index)
        chosen = [("nop heads", 0, nop), ("other sink heads", 0, others)]
        chosen += [
            ("as many nop heads as others", draw, nop.sample(len(others), random_state=draw))
            for draw in range(1, draws + 1)
        ]
        for where, draw, of in chosen:
            key = {"where": where, "how": how, "keys": "first token", "draw": draw}
            yield key, RemoveSinks(how, "first", heads=pairs(of))


def pairs(table: pd.DataFrame) -> tuple[tuple[int, int], ...]:
    """Layer and head of each."""
    return tuple(zip(table["layer"].tolist(), table["head"].tolist(), strict=True))


def sinks_of(model: Model, ids: Tensor) -> list[dict[str, Any]]:
    """Sink heads, and the place of their sinks."""
    with tempfile.TemporaryDirectory() as folder:
        found = sinkscope.diagnose(model, ids, Path(folder) / "diagnosis")
        heads, events = found.heads, found.events
    heads = heads[heads["kind"] == "sink"]
    own = events.merge(heads[["layer", "head"]], on=["layer", "head"])
    own = own[own["mass"] >= 0.3]
    places = own["sink"].value_counts(normalize=True)
    return [
        {
            "sink_heads": len(heads),
            "median_mass": heads["mass_median"].median(),
            "place": int(places.index[0]) if len(places) else -1,
            "share_there": float(places.iloc[0]) if len(places) else np.nan,
            "largest_norm_ratio": float((own["hidden_norm"] / own["hidden_norm_median"]).max()) if len(own) else np.nan,
        }
    ]


def write(study: Study) -> None:
    table = study.table()
    sinks = study.further("sinks.csv")
    plain = table[table["how"] == "none"].sort_values("text")["loss"].to_numpy()
    rows, bars = [], []
    for (where, how, keys), of in table.groupby(["where", "how", "keys"], sort=False):
        losses = of.pivot(index="text", columns="draw", values="loss").sort_index()
        more = (losses.mean(axis=1) - plain).to_numpy()
        own = sinks[(sinks["where"] == where) & (sinks["how"] == how) & (sinks["keys"] == keys)]
        found = ["–"] * 3
        if len(own):
            one = own.iloc[0]
            found = [
                int(one["sink_heads"]),
                f"{one['place']:.0f} ({one['share_there']:.0%})",
                f"{one['largest_norm_ratio']:.0f}",
            ]
        perplexity = f"{np.exp(losses.to_numpy().mean()):.1f}"
        rows.append([where, how, keys, losses.shape[1], perplexity, "–" if how == "none" else shown(more), *found])
        if how != "none":
            bars.append((f"{how}, {keys}, {where}", more, "random" in keys))
    head = ["heads", "removed by", "keys", "draws", "perplexity", "more nats per token, 95%"]
    head += ["sink heads then", "their sink at place (share)", "its hidden norm / median"]
    study.findings("### SmolLM2-135M without its sinks", markdown(head, rows))
    draw(study, bars)


def draw(study: Study, bars: list[tuple[str, np.ndarray, bool]]) -> None:
    figure, (panel,) = panels(1, 8, 0.8 + 0.26 * len(bars))
    for place, (_, more, control) in enumerate(reversed(bars)):
        panel.barh(place, more.mean(), color=EMPTY if control else BLUE)
        panel.plot(np.quantile(more, (0.05, 0.95)), (place, place), color=INK, lw=0.8)
    panel.set_yticks(range(len(bars)), [label for label, _, _ in reversed(bars)], fontsize=8)
    panel.set(xlabel="more nats per token than untouched (line: 5% to 95% of windows)", xscale="symlog")
    study.figure("loss", figure)


if __name__ == "__main__":
    main()
