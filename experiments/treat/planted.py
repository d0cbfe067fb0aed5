"""Which cure fits which disease? Known mechanisms planted in heads, taken away, and given back by treatments.

    python experiments/treat/planted.py --data FOLDER [--models minilm] [--how mask] [--heads 6] [--quick]

In a copy of a model one head gets a known mechanism (`tasks.plant`): nop (every query parks), adaptive nop (60% of them
do), bias, broadcast. All have the same sink token, [SEP] in MiniLM and [CLS] in DINOv2-S, with a mass of 0.9. Then this
head loses its sink: `mask`, nobody sees it, and its weight goes to the other tokens; `zero`, it keeps the weight and
hands out nothing (no damage to a nop). A cure is put into the head's layer and tuned for 80 steps of 4 inputs, by
distillation to the final tokens of the planted model, everything else frozen. Registers start at random, or as copies
of the sink's token as the first block gets it (`Registers(like=...)`). Repaired is the share of the squared error of
the final tokens (but the sink) that is gone then, on 64 other inputs. Controls: the same cure in the layer above (below
for the last), which has as many parameters; 0 is no cure. Intervals are over heads; a cell that no head is faithful in
is left out, and said. MiniLM reads texts of 32 tokens, DINOv2-S pictures of CIFAR-10 at 112 pixels.
`--rates` tries learning rates on heads that are in no table. Written to results/treat-planted: `rows.parquet` (one row
per head and cure), `findings.md`, `repaired.svg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import Clock, Study, markdown, mean_interval, panels, parser
from _planting import CURES, DISEASES, ELSEWHERE, SUBJECTS, cured, damage, inputs_of, patient, removed

import sinkscope
from sinkscope._errors import InputError
from sinkscope.report._style import INK

STEPS = 80
TITLES = {"minilm": "MiniLM-L6", "dinov2": "DINOv2-S"}
WORDS = {"mask": "masked", "zero": "zeroed"}
ALL_CURES = [*CURES, *(f"{cure} elsewhere" for cure in ELSEWHERE)]
OF_RATES = 1000
"""Heads from this number on are for choosing learning rates."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", default="minilm")
    options.add_argument("--how", default="mask", help="mask or zero, or both: mask,zero")
    options.add_argument("--heads", type=int, default=6)
    options.add_argument("--process", default="0/1", help="K/N: every N-th head")
    options.add_argument("--cures", default="", help="only these, separated by semicolons")
    options.add_argument("--rates", default="", help="learning rates to try, comma separated")
    given = options.parse_args()
    steps, heads = (3, 1) if given.quick else (STEPS, given.heads)
    name = "planted-rates" if given.rates else "planted"
    study = Study(given, name, ("model", "how", "disease", "number", "cure", "rate"), steps=steps)
    if not given.tables:
        mine, of = (int(part) for part in given.process.split("/"))
        first = OF_RATES if given.rates else 0
        numbers = [first + number for number in range(heads) if number % of == mine]
        cures = given.cures.split(";") if given.cures else ALL_CURES
        rates = [float(rate) for rate in given.rates.split(",") if rate]
        for model in given.models.split(","):
            for how in given.how.split(","):
                run(study, given.data, model, how, numbers, cures, rates, steps)
    write(study)


def run(
    study: Study,
    data: Path,
    name: str,
    how: str,
    numbers: list[int],
    cures: list[str],
    rates: list[float],
    steps: int,
) -> None:
    """All cures of all diseases that are not there yet."""
    subject = SUBJECTS[name]
    model = sinkscope.load(subject.reference)
    tensor = inputs_of(model, subject, data)
    for number in numbers:
        for disease in DISEASES:
            if how == "zero" and "nop" in disease:
                continue
            front = {"model": name, "how": how, "disease": disease, "number": number}
            left = [key for key in keys(cures, rates) if not study.has(**front, **key)]
            if not left:
                continue
            try:
                who = patient(model, subject, tensor, disease, number)
            except InputError as error:
                study.say(f"{front}: {error}")
                continue
            broken = removed(who, subject, how)
            before = damage(broken, who, subject.at)
            layer, head = who.place
            for key in left:
                clock = Clock()
                model_cured, told = cured(broken, who, subject, key["cure"], steps, number, key["rate"])
                after = damage(model_cured, who, subject.at)
                row = {"layer": layer, "head": head, "before": before, "after": after, **told}
                study.add([row], **front, **key)
                share = f"{1 - after / before:.2f} of {before:.2g} repaired"
                study.say(f"{name} {how}, {disease} in {layer}.{head}, {key}: {share}, {clock.seconds():.0f} s")


def keys(cures: list[str], rates: list[float]) -> Iterator[dict[str, Any]]:
    """Cures, each with its learning rate, or with those that are tried."""
    for cure in cures:
        for rate in rates or [CURES[cure.removesuffix(" elsewhere")][1]]:
            yield {"cure": cure, "rate": rate}


def write(study: Study) -> None:
    table = study.table()
    table["repaired"] = 1 - table["after"] / table["before"]
    if (table["number"] >= OF_RATES).any():
        found = table.groupby(["cure", "rate"], sort=False)["repaired"].agg(["mean", "min", "max", "count"]).round(3)
        study.findings("### Learning rates", markdown(["cure", "rate", *found], found.reset_index().to_numpy()))
        return
    parts = []
    for (name, how), of in table.groupby(["model", "how"], sort=False):
        diseases = [disease for disease in DISEASES if disease in set(of["disease"])]
        rows = []
        for cure in (cure for cure in ALL_CURES if cure in set(of["cure"])):
            own = of[of["cure"] == cure]
            cells = [interval(own[own["disease"] == disease]["repaired"]) for disease in diseases]
            rows.append([cure, int(own["parameters"].median()), *cells])
        lost = [of[of["disease"] == disease].groupby("number")["before"].first() for disease in diseases]
        heads = ["squared error without the sink", "–", *(f"{cell.mean():.2g}" for cell in lost)]
        count = ["heads", "–", *(len(cell) for cell in lost)]
        title = f"### {TITLES[name]}, sink {WORDS[how]}: share of the damage that is repaired"
        parts += [title, markdown(["cure", "parameters", *diseases], [heads, count, *rows])]
    study.findings(*parts)
    draw(study, table)


def interval(values: pd.Series) -> str:
    """Mean over heads with its interval."""
    if values.empty:
        return "–"
    middle, low, high = mean_interval(values.to_numpy())
    return f"{middle:.2f}" if np.isnan(low) else f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def draw(study: Study, table: pd.DataFrame) -> None:
    groups = list(table.groupby(["model", "how"], sort=False))
    figure, axes = panels(len(groups), 5.2, 4.2)
    for panel, ((name, how), of) in zip(axes, groups, strict=True):
        cures = [cure for cure in ALL_CURES if cure in set(of["cure"])]
        diseases = [disease for disease in DISEASES if disease in set(of["disease"])]
        means = of.pivot_table(index="cure", columns="disease", values="repaired").loc[cures, diseases]
        panel.imshow(means.clip(0, 1), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, values in enumerate(means.to_numpy()):
            for column, value in enumerate(values):
                colour = "white" if value > 0.6 else INK
                panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
        panel.set_xticks(range(len(diseases)), diseases, fontsize=9)
        panel.set_yticks(range(len(cures)), cures, fontsize=9)
        panel.set_title(f"{TITLES[name]}, sink {WORDS[how]}", fontsize=10)
        panel.tick_params(length=0)
    study.figure("repaired", figure)


if __name__ == "__main__":
    main()
