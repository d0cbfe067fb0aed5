"""What gives SmolLM2-135M back what its first token was good for? Three cures, tuned briefly with the model frozen.

    python experiments/treat/smollm2_recovery.py --data FOLDER [--quick]

The first token is taken from all heads that results/real calls sink heads: masked (its weight goes to other tokens),
or zeroed (it keeps the weight and writes nothing). Where it is masked, a learned sink logit, an attention bias, or
four prefix key-values are put into all layers and tuned for 40 steps of two windows of 128 tokens, by distillation to
the final tokens of the untouched model. A learned sink logit can only let heads be silent; a bias and prefix
key-values can also write a constant. `prefix-kv 1, filled` is not tuned: it holds keys and values of one token of the
text (`fill_prefix`). `key bias`, whose added value is zero, has as many keys as the attention bias but cannot write:
a control. Losses are of 16 windows of 256 tokens behind the part of the text that is tuned on. Recovered is the share
of the lost nats; intervals are bootstrapped over windows, with the mean over three seeds (the start of what is
random, and the order of the inputs). Written to results/treat-smollm2-recovery: `rows.parquet` (one row per window),
`tuning.csv`, `findings.md`, `recovered.svg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from _common import Clock, Study, language_losses, markdown, panels, parser, shown, sink_heads, spans, token_ids
from torch import Tensor

import sinkscope
from sinkscope.models import Model, make_inputs
from sinkscope.report._style import BLUE, EMPTY, INK
from sinkscope.train.tuning import TuneOptions, tune
from sinkscope.treat import AttentionBias, KeyBias, LearnedSink, PrefixKV, RemoveSinks, Treatment, fill_prefix

CURES: dict[str, Treatment] = {
    "learned sink": LearnedSink(),
    "key bias": KeyBias(),
    "attention bias": AttentionBias(),
    "prefix-kv 4": PrefixKV(4),
}
FILLED = "prefix-kv 1, filled"
LENGTH, TRAINED, LR = 256, 128, 0.03
HOWS = ("mask", "zero")


def main() -> None:
    given = parser(__doc__).parse_args()
    steps, texts, seeds = (2, 2, 1) if given.quick else (40, 16, 3)
    facts = {"steps": steps, "texts": texts, "seeds": seeds, "lr": LR, "tokens_per_step": 2 * TRAINED}
    study = Study(given, "smollm2-recovery", ("how", "cure", "seed"), **facts)
    if not given.tables:
        model = sinkscope.load("zoo:smollm2-135m")
        ids = token_ids(model, given.data / "text.txt")
        held_out = spans(ids[len(ids) // 2 :], texts, LENGTH)
        trained = spans(ids[: len(ids) // 2], 160, TRAINED)
        for key in keys(seeds):
            if study.has(**key):
                continue
            clock = Clock()
            torch.manual_seed(key["seed"])
            options = TuneOptions(
                steps=steps, lr=LR, batch_size=2, held_out=0.03, evaluate_every=steps, seed=key["seed"]
            )
            cured, told = treated(model, trained, options, key["how"], key["cure"])
            losses = language_losses(cured, held_out)
            study.add_to("tuning.csv", [told], **key)
            study.add(({"text": text, "loss": loss} for text, loss in enumerate(losses)), **key)
            study.say(f"{key}: {losses.mean():.3f} nats, {told}, {clock.seconds():.0f} s")
    write(study)


def keys(seeds: int) -> Iterator[dict[str, Any]]:
    """All runs."""
    yield {"how": "untouched", "cure": "none", "seed": 0}
    for how in HOWS:
        yield {"how": how, "cure": "none", "seed": 0}
        yield {"how": how, "cure": FILLED, "seed": 0}
    for seed in range(seeds):
        for cure in CURES:
            yield {"how": "mask", "cure": cure, "seed": seed}


def treated(model: Model, trained: Tensor, options: TuneOptions, how: str, cure: str) -> tuple[Model, dict[str, Any]]:
    """The model with its sink removed and the cure tuned, and how tuning went."""
    told: dict[str, Any] = {"parameters": 0, "before": np.nan, "after": np.nan, "diverged": False}
    if how == "untouched":
        return model, told
    removal = RemoveSinks(how, "first", heads=sink_heads("smollm2"))
    if cure == "none":
        return sinkscope.treat(model, removal), told
    if cure == FILLED:
        filled = sinkscope.treat(model, [removal, PrefixKV(1)], probe=trained[:1])
        fill_prefix(filled, trained[:1, :1])
        return filled, told
    cured = sinkscope.treat(model, [removal, CURES[cure]], probe=trained[:2], seed=options.seed)
    tuned = tune(cured, make_inputs(cured, trained), options)
    told = {"parameters": tuned.parameters, "before": tuned.loss_before, "after": tuned.loss_after}
    return tuned.model, {**told, "diverged": tuned.diverged}


def write(study: Study) -> None:
    table = study.table()
    tuning = study.further("tuning.csv").set_index(["how", "cure"])
    losses = table.groupby(["how", "cure", "text"], sort=False)["loss"].mean().unstack("text")
    plain = losses.loc[("untouched", "none")].to_numpy()
    rows, bars = [["untouched", "–", "–", f"{np.exp(plain.mean()):.2f}", "–", "–", "–"]], []
    for (how, cure), row in losses.iterrows():
        if how == "untouched":
            continue
        own = row.to_numpy()
        removed = losses.loc[(how, "none")].to_numpy()
        told = tuning.loc[[(how, cure)]]
        distance = f"{told['before'].mean():.3f} to {told['after'].mean():.3f}" if told["parameters"].max() else "–"
        share = "–" if cure == "none" else share_interval(removed - own, removed - plain)
        seeds = table[(table["how"] == how) & (table["cure"] == cure)].groupby("seed")["loss"].mean()
        perplexity = f"{np.exp(own.mean()):.2f}" + (
            f" ({np.exp(seeds.min()):.2f} to {np.exp(seeds.max()):.2f})" if len(seeds) > 1 else ""
        )
        rows.append([how, cure, told["parameters"].max(), perplexity, shown(own - plain), share, distance])
        if cure != "none":
            bars.append((f"{how}: {cure}", float((removed - own).mean() / (removed - plain).mean()), cure))
    head = ["first token in sink heads", "cure", "parameters", "perplexity (seeds)", "more nats than untouched, 95%"]
    head += ["recovered, 95%", "squared error of final tokens, tuning"]
    study.findings("### SmolLM2-135M: what brings the first token's function back", markdown(head, rows))
    figure, (panel,) = panels(1, 6.4, 0.8 + 0.3 * len(bars))
    for place, (_, share, cure) in enumerate(reversed(bars)):
        panel.barh(place, share, color=EMPTY if cure == "key bias" else BLUE)
    panel.set_yticks(range(len(bars)), [label for label, _, _ in reversed(bars)])
    panel.axvline(0, color=INK, lw=0.8)
    panel.set_xlabel("recovered share of the lost nats")
    study.figure("recovered", figure)


def share_interval(saved: np.ndarray, lost: np.ndarray) -> str:
    """Ratio of means with a percentile bootstrap interval over windows."""
    drawn = np.random.default_rng(0).integers(len(lost), size=(1000, len(lost)))
    ratios = saved[drawn].mean(1) / lost[drawn].mean(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return f"{saved.mean() / lost.mean():.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
