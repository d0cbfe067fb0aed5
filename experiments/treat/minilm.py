"""MiniLM's sinks are silent. Does the model need them, and do gates or a learned sink logit serve as well?

    python experiments/treat/minilm.py --data FOLDER [--quick]

[CLS] and [SEP] are masked in the heads that results/real calls sink heads, all of them nop; or as many random tokens
are, in three draws; or their values are zeroed. Then a cure is put into all layers and tuned for 100 steps of 2 texts
of 128 tokens, by distillation to the final tokens of the untouched model. `constant gate` is a gate that does not
depend on its input: a control, as a nop whose queries differ needs more. `gate, sinks kept` is tuned with the sinks
in place, where distillation has nothing to teach: its loss is 0. Judged on 96 other texts: squared error of the final
tokens, and whether sentence similarity holds, as the rank correlation of the cosines of all pairs of mean-pooled
embeddings with those of the untouched model, and as the share of texts whose nearest text is the same. Three seeds.
Written to results/treat-minilm: `rows.parquet` (one row per text), `models.csv` (one row per model), `findings.md`,
`similar.svg`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import Clock, Study, agreement, final, markdown, panels, parser, shown, sink_heads, stacked
from scipy.stats import spearmanr
from torch import Tensor

import sinkscope
from sinkscope.models import Model, make_inputs
from sinkscope.report._style import BLUE, EMPTY, INK
from sinkscope.train.tuning import TuneOptions, tune
from sinkscope.treat import AttentionBias, Gate, LearnedSink, RemoveSinks, Treatment

LENGTH, JUDGED, TUNED, STEPS = 128, 96, 250, 100
CURES: dict[str, tuple[tuple[Treatment, ...], float]] = {
    "gate": ((Gate("headwise"),), 0.01),
    "constant gate": ((Gate("headwise", input_dependent=False),), 0.03),
    "learned sink": ((LearnedSink(),), 0.03),
    "attention bias": ((AttentionBias(),), 0.03),
    "gate + learned sink": ((Gate("headwise"), LearnedSink()), 0.01),
}
KEPT = "gate, sinks kept"


def main() -> None:
    given = parser(__doc__).parse_args()
    steps, seeds = (3, 1) if given.quick else (STEPS, 3)
    study = Study(given, "minilm", ("removed", "cure", "seed"), steps=steps, seeds=seeds, judged=JUDGED)
    if not given.tables:
        model = sinkscope.load("zoo:minilm-l6")
        supply = make_inputs(model, str(given.data / "text.txt"), length=LENGTH, limit=JUDGED + TUNED, batch_size=50)
        ids = stacked(supply)
        judged, tuned_on = ids[:JUDGED], ids[JUDGED:]
        wanted = final(model, judged)
        for key in keys(seeds):
            if study.has(**key):
                continue
            clock = Clock()
            made, told = treated(model, key, tuned_on, steps)
            tokens = final(made, judged)
            rows = agreement(tokens, wanted)
            told |= similarity(tokens, wanted) | sinks_of(made, judged[:24])
            study.add_to("models.csv", [told], **key)
            study.add(({"text": text, **row} for text, row in enumerate(rows)), **key)
            study.say(f"{key}: rank correlation {told['rank_correlation']:.3f}, {told}, {clock.seconds():.0f} s")
    write(study)


def keys(seeds: int) -> Iterator[dict[str, Any]]:
    """All models."""
    yield {"removed": "nothing", "cure": "none", "seed": 0}
    yield {"removed": "nothing", "cure": KEPT, "seed": 0}
    yield {"removed": "sinks, zeroed", "cure": "none", "seed": 0}
    yield {"removed": "sinks, masked", "cure": "none", "seed": 0}
    for seed in range(seeds):
        yield {"removed": "random, masked", "cure": "none", "seed": seed}
        for cure in CURES:
            yield {"removed": "sinks, masked", "cure": cure, "seed": seed}


def treated(model: Model, key: dict[str, Any], tuned_on: Tensor, steps: int) -> tuple[Model, dict[str, Any]]:
    """The model with its sinks removed and the cure tuned; and how tuning went."""
    heads, seed = sink_heads("minilm"), key["seed"]
    what, _, how = key["removed"].partition(", ")
    made = model
    if what != "nothing":
        word = "zero" if how == "zeroed" else "mask"
        made = sinkscope.treat(
            model, RemoveSinks(word, (0, LENGTH - 1), heads=heads, random=what == "random", seed=seed)
        )
    told = {"parameters": 0, "tuning_before": np.nan, "tuning_after": np.nan, "diverged": False}
    if key["cure"] == "none":
        return made, told
    treatments, rate = CURES[key["cure"].removesuffix(", sinks kept")]
    made = sinkscope.treat(made, list(treatments), probe=tuned_on[:8], seed=seed)
    options = TuneOptions(steps=steps, lr=rate, batch_size=2, held_out=0.1, evaluate_every=steps, seed=seed)
    tuned = tune(made, make_inputs(made, tuned_on), options)
    told = {"parameters": tuned.parameters, "tuning_before": tuned.loss_before, "tuning_after": tuned.loss_after}
    return tuned.model, {**told, "diverged": tuned.diverged}


def similarity(tokens: Tensor, wanted: Tensor) -> dict[str, float]:
    """Whether texts are as similar to each other as before."""
    cosines = []
    for found in (tokens, wanted):
        pooled = torch.nn.functional.normalize(found.double().mean(1), dim=-1)
        cosines.append((pooled @ pooled.T).numpy())
    pairs = np.triu_indices(len(tokens), 1)
    for found in cosines:
        np.fill_diagonal(found, -1)
    same = (cosines[0].argmax(1) == cosines[1].argmax(1)).mean()
    return {
        "rank_correlation": float(spearmanr(cosines[0][pairs], cosines[1][pairs]).statistic),
        "same_nearest": float(same),
    }


def sinks_of(model: Model, ids: Tensor) -> dict[str, Any]:
    """Sink heads, and what the heads that had sinks attend to that is no token."""
    with tempfile.TemporaryDirectory() as folder:
        found = sinkscope.diagnose(model, ids, Path(folder) / "diagnosis")
        heads, events = found.heads, found.events
    chosen = pd.DataFrame(sink_heads("minilm"), columns=["layer", "head"])
    own = events.merge(chosen, on=["layer", "head"])
    return {
        "sink_heads": int((heads["kind"] == "sink").sum()),
        "mass": float(own["mass"].median()),
        "virtual_mass": float(own["virtual_mass"].median()),
    }


def write(study: Study) -> None:
    table, models = study.table(), study.further("models.csv")
    rows, bars = [], []
    for (removed, cure), of in table.groupby(["removed", "cure"], sort=False):
        told = models[(models["removed"] == removed) & (models["cure"] == cure)]
        error = of.groupby("text")["error"].mean().to_numpy()
        distance = told["tuning_after"].mean()
        rows.append(
            [
                removed,
                cure,
                int(told["parameters"].max()),
                shown(error),
                spread(told["rank_correlation"]),
                spread(told["same_nearest"]),
                spread(told["sink_heads"], 0),
                spread(told["mass"]),
                spread(told["virtual_mass"]),
                "–" if np.isnan(distance) else f"{told['tuning_before'].mean():.2g} to {distance:.2g}",
            ]
        )
        if removed != "nothing":
            bars.append((f"{removed}; {cure}", told["rank_correlation"], cure == "none"))
    head = ["removed", "cure", "parameters", "squared error of final tokens, 95%", "rank correlation of similarities"]
    head += ["same nearest text", "sink heads", "mass in former sink heads", "mass on no token", "error in tuning"]
    study.findings("### MiniLM without its sinks; mean (smallest to largest) over seeds", markdown(head, rows))
    figure, (panel,) = panels(1, 6.4, 0.8 + 0.32 * len(bars))
    for place, (_, values, plain) in enumerate(reversed(bars)):
        panel.barh(place, values.mean(), color=EMPTY if plain else BLUE)
        panel.plot((values.min(), values.max()), (place, place), color=INK, lw=1)
    panel.set_yticks(range(len(bars)), [label for label, _, _ in reversed(bars)])
    panel.set(xlabel="rank correlation of sentence similarities", xlim=(0, 1))
    study.figure("similar", figure)


def spread(values: pd.Series, digits: int = 3) -> str:
    """Mean and range over seeds; none where it cannot be said (weights behind a gate add up to anything)."""
    if values.isna().any():
        return "–"
    middle = f"{values.mean():.{digits}f}"
    return middle if values.nunique() <= 1 else f"{middle} ({values.min():.{digits}f} to {values.max():.{digits}f})"


if __name__ == "__main__":
    main()
