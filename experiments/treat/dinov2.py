"""Registers, gates, both, and test-time registers in DINOv2-S: what becomes of its sinks, outputs, saliency maps?

    python experiments/treat/dinov2.py --data FOLDER [--quick]

The model is zoo:dinov2-small-saliency at 224 pixels. Cures are put into all layers and tuned on 40 pictures for 40
steps of 2, by distillation to the final tokens of the untouched model, in two ways. `sinks kept`: nothing else is
changed, so that the loss is 0 from the start and nothing is learned. `sinks masked`: nobody sees [CLS] in the heads
whose sink it is (results/real), and the cure has to stand in; `attention bias` and `no cure` beside it.
`one register, a copy, seen` is `Registers(1, like=0, weighed=False)`: it changes the outputs from the start. Test-time
registers are not tuned: ten neurons found on the pictures that are tuned on (outliers by the rule, or if there are none
the 1% of patches with the largest norms), and as many random ones of the same layers. Judged on 24 other pictures:
squared error of the final tokens, rank correlation of the maps of the model's own decoder, norms before the final norm,
sink heads by verdict and by the role of their sink (12 pictures each, first seed). Three seeds. Written to
results/treat-dinov2: `rows.parquet` (one row per picture), `models.csv` (one row per model), `discovery.txt`,
`findings.md`, `sinks.svg`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import Clock, Study, agreement, final, markdown, panels, parser, shown, sink_heads, stacked
from _saliency import saliency, saliency_decoder
from scipy.stats import spearmanr
from torch import Tensor, nn

import sinkscope
from sinkscope._errors import OptionError
from sinkscope.artifact import write_text
from sinkscope.models import Model, make_inputs
from sinkscope.report._style import VERDICT_COLOURS
from sinkscope.train.tuning import TuneOptions, tune
from sinkscope.treat import (
    AttentionBias,
    Gate,
    RegisterNeurons,
    Registers,
    RemoveSinks,
    TestTimeRegisters,
    Treatment,
    anatomy_of,
    find_register_neurons,
)

JUDGED, STEPS, SEEDS, NEURONS = 24, 40, 3, 10
BY_HAND = 60.0
"""Norms above it are taken for outliers if the rule finds none: 1% of patches."""

CURES: dict[str, tuple[tuple[Treatment, ...], float]] = {
    "gate": ((Gate("headwise"),), 0.003),
    "registers": ((Registers(4),), 0.03),
    "registers, copies of [CLS]": ((Registers(4, like=0),), 0.03),
    "one register, a copy, seen": ((Registers(1, like=0, weighed=False),), 0.003),
    "gate + registers": ((Gate("headwise"), Registers(4)), 0.01),
    "attention bias": ((AttentionBias(),), 0.03),
}
FOUND, RANDOM = "test-time registers", "test-time registers, random neurons"
WORDS = ("nop", "bias", "broadcast", "inert", "undecided")


def main() -> None:
    given = parser(__doc__).parse_args()
    steps, seeds, judged_count = (2, 1, 8) if given.quick else (STEPS, SEEDS, JUDGED)
    study = Study(given, "dinov2", ("sinks", "cure", "seed"), steps=steps, seeds=seeds, judged=judged_count)
    if not given.tables:
        model = sinkscope.load("zoo:dinov2-small-saliency")
        supply = make_inputs(model, str(given.data / "images"), size=224, batch_size=16)
        pictures = stacked(supply)
        pictures = pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))]
        judged, tuned_on = pictures[:judged_count], pictures[JUDGED:]
        judge = Judge(model, judged)
        neurons = discovered(study, model, tuned_on)
        for key in keys(seeds):
            if study.has(**key):
                continue
            clock = Clock()
            made, told = treated(model, key, tuned_on, neurons, steps)
            rows, more = judge(made, verdicts=key["seed"] == 0)
            study.add_to("models.csv", [told | more], **key)
            study.add(({"picture": picture, **row} for picture, row in enumerate(rows)), **key)
            study.say(f"{key}: {told | more}, {clock.seconds():.0f} s")
    write(study)


def keys(seeds: int) -> Iterator[dict[str, Any]]:
    """All models."""
    yield {"sinks": "kept", "cure": "none", "seed": 0}
    yield {"sinks": "masked", "cure": "none", "seed": 0}
    for cure in CURES:
        if all(treatment.harmless for treatment in CURES[cure][0]) and cure != "attention bias":
            yield {"sinks": "kept", "cure": cure, "seed": 0}
    yield {"sinks": "kept", "cure": FOUND, "seed": 0}
    for seed in range(seeds):
        yield {"sinks": "kept", "cure": RANDOM, "seed": seed}
        for cure in CURES:
            yield {"sinks": "masked", "cure": cure, "seed": seed}


def discovered(study: Study, model: Model, pictures: Tensor) -> RegisterNeurons:
    """Register neurons, and what finding them says: by the rule, and if that finds none by a threshold of norms."""
    batches, said = list(pictures.split(8)), ""
    try:
        found = find_register_neurons(model, batches)
    except OptionError as error:
        said = f"By the rule: {error}\nBy hand, norms above {BY_HAND:g}: "
        found = find_register_neurons(model, batches, threshold=BY_HAND)
    scores = [f"{found.scores[place]:.3g}" for place in found.neurons(NEURONS)]
    typical = found.scores[: found.appears + 1].median()
    text = f"{said}{found}\nNeurons {found.neurons(NEURONS)}, scores {', '.join(scores)}; median score {typical:.3g}.\n"
    write_text(study.folder / "discovery.txt", text)
    return found


def treated(
    model: Model, key: dict[str, Any], tuned_on: Tensor, neurons: RegisterNeurons, steps: int
) -> tuple[Model, dict[str, Any]]:
    """The model with its sinks removed and the cure tuned; and how tuning went."""
    told = {"parameters": 0, "tuning_before": np.nan, "tuning_after": np.nan, "diverged": False}
    made, cure, seed = model, key["cure"], key["seed"]
    if key["sinks"] == "masked":
        heads = tuple(place for place in sink_heads("dinov2") if place not in patch_sinks())
        made = sinkscope.treat(model, RemoveSinks("mask", "cls", heads=heads))
    if cure in (FOUND, RANDOM):
        chosen = neurons.neurons(NEURONS)
        if cure == RANDOM:
            chosen = neurons.random(chosen, seed)
        return sinkscope.treat(made, TestTimeRegisters(chosen)), told
    if cure == "none":
        return made, told
    treatments, rate = CURES[cure]
    made = sinkscope.treat(made, list(treatments), probe=tuned_on[:2], seed=seed)
    options = TuneOptions(steps=steps, lr=rate, batch_size=2, held_out=0.1, evaluate_every=steps, seed=seed)
    tuned = tune(made, make_inputs(made, tuned_on), options)
    told = {"parameters": tuned.parameters, "tuning_before": tuned.loss_before, "tuning_after": tuned.loss_after}
    return tuned.model, {**told, "diverged": tuned.diverged}


def patch_sinks() -> set[tuple[int, int]]:
    """Sink heads whose sink is a patch; it is another one in every picture."""
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "real" / "dinov2" / "heads.csv")
    of = table[(table["kind"] == "sink") & (table["role"] == "patch")]
    return set(zip(of["layer"].tolist(), of["head"].tolist(), strict=True))


class Judge:
    """Compares models with the untouched one on pictures that nothing is tuned on."""

    def __init__(self, model: Model, pictures: Tensor) -> None:
        self._pictures = pictures
        self._decoder = saliency_decoder()
        self._wanted = final(model, pictures, 4)
        self._maps = saliency(self._decoder, self._wanted)

    def __call__(self, model: Model, verdicts: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of pictures, and what is said of the model."""
        norms: list[Tensor] = []
        norm = anatomy_of(model.module).final_norm
        assert norm is not None
        handle = norm.register_forward_pre_hook(partial(_note, norms))
        tokens = final(model, self._pictures, 4)
        handle.remove()
        sizes = torch.cat(norms)
        maps = saliency(self._decoder, tokens)
        rows = agreement(tokens, self._wanted)
        for number, row in enumerate(rows):
            row["map_correlation"] = float(spearmanr(maps[number], self._maps[number]).statistic)
            row["largest_patch_norm"] = float(sizes[number, 1:].max())
            row["median_patch_norm"] = float(sizes[number, 1:].median())
        return rows, self._sinks(model, verdicts)

    def _sinks(self, model: Model, verdicts: bool) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            found = sinkscope.diagnose(model, self._pictures, Path(folder) / "diagnosis", batch_size=4)
            sinks = found.heads[found.heads["kind"] == "sink"]
            words: Counter[str] = Counter()
            if verdicts and len(sinks):
                verified = found.verify(model=model, data=self._pictures, inputs=12)
                words = Counter(verified.heads.loc[sinks.index, "verdict"].fillna("not verified"))
            registers = found.events.query("mass >= 0.3 and role == 'register'")
        said = json.dumps(dict(words)) if verdicts else ""
        roles = json.dumps(dict(Counter(sinks["role"])))
        return {"sink_heads": len(sinks), "roles": roles, "verdicts": said, "register_events": len(registers)}


def _note(norms: list[Tensor], _module: nn.Module, args: tuple[Tensor, ...]) -> None:
    norms.append(args[0].norm(dim=-1))


def write(study: Study) -> None:
    table, models = study.table(), study.further("models.csv")
    rows = []
    for (sinks, cure), of in table.groupby(["sinks", "cure"], sort=False):
        told = models[(models["sinks"] == sinks) & (models["cure"] == cure)]
        means = of.groupby("picture")[["error", "map_correlation", "largest_patch_norm", "median_patch_norm"]].mean()
        first = told.iloc[0]
        words, roles = json.loads(first["verdicts"]), json.loads(first["roles"])
        ratio = (means["largest_patch_norm"] / means["median_patch_norm"]).mean()
        tuning = "–"
        if not np.isnan(told["tuning_before"].mean()):
            tuning = f"{told['tuning_before'].mean():.2g} to {told['tuning_after'].mean():.2g}"
        rows.append(
            [
                sinks,
                cure,
                int(first["parameters"]),
                len(told),
                shown(means["error"]),
                shown(means["map_correlation"]),
                f"{means['largest_patch_norm'].mean():.3g} ({ratio:.2f})",
                " / ".join(map(str, sorted(told["sink_heads"]))),
                ", ".join(f"{count} {role}" for role, count in roles.items()) or "–",
                *(words.get(word, 0) for word in WORDS),
                tuning,
            ]
        )
    head = ["sinks", "cure", "parameters", "seeds", "squared error of final tokens, 95%"]
    head += ["rank correlation of maps, 95%"]
    head += ["largest patch norm (by median)", "sink heads, by seed", "roles of their sinks", *WORDS, "error in tuning"]
    discovery = (study.folder / "discovery.txt").read_text(encoding="utf-8").strip()
    study.findings(
        "### DINOv2-S (saliency) treated; verdicts of the first seed",
        markdown(head, rows),
        "### Register neurons",
        discovery,
    )
    draw(study, models)


def draw(study: Study, models: pd.DataFrame) -> None:
    first = models[models["seed"] == 0].reset_index(drop=True)
    labels = [f"{row['cure']}, sinks {row['sinks']}" for _, row in first.iterrows()]
    figure, (panel,) = panels(1, 7, 1 + 0.34 * len(labels))
    left = np.zeros(len(labels))
    for word in WORDS:
        counts = np.array([json.loads(said).get(word, 0) for said in first["verdicts"]])
        panel.barh(labels, counts, left=left, color=VERDICT_COLOURS[word], label=word)
        left += counts
    panel.invert_yaxis()
    panel.set_xlabel("sink heads by verdict")
    panel.legend(fontsize=8)
    study.figure("sinks", figure)


if __name__ == "__main__":
    main()
