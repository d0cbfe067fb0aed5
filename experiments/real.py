"""What the sinks of three real models are: verdicts, shares, agreement with the literature's rules, pruning.

    python experiments/real.py MODEL --data FOLDER --runs FOLDER [--limit 64] [--inputs 64] [--heads auto]
    python experiments/real.py tables

MODEL is `dinov2`, `smollm2` or `minilm`. FOLDER of --data holds `images/` and `text.txt`; --runs is where diagnoses go
(large, not committed). A model is diagnosed and verified, then the writes of all its nop heads are removed together,
beside the same number of other heads of the same layers, drawn at random (where there are fewer others, all of them,
beside as many nop heads). Written to experiments/results/real/MODEL: `heads.csv` (one row per head), `effects.csv`,
`prune.csv`. `tables` makes `findings.md` and the figures of all three from them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _real_tables import write_tables
from torch import Tensor

import sinkscope
from sinkscope.capture import AttentionCall, capture
from sinkscope.models import Batch, Model, make_inputs

ROOT = Path(__file__).parent / "results" / "real"
MODELS = {
    "dinov2": ("zoo:dinov2-small-saliency", "images", {"size": 224}),
    "smollm2": ("zoo:smollm2-135m", "text", {"length": 64}),
    "minilm": ("zoo:minilm-l6", "text", {"length": 128}),
}
DRAWS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[*MODELS, "tables"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--inputs", type=int, default=64)
    parser.add_argument("--heads", default="auto")
    given = parser.parse_args()
    if given.model == "tables":
        write_tables(ROOT)
        return
    reference, kind, options = MODELS[given.model]
    data = given.data / ("images" if kind == "images" else "text.txt")
    diagnosis = sinkscope.diagnose(
        reference, data, given.runs / given.model, kind=kind, limit=given.limit, batch_size=8, **options
    )
    verified = diagnosis.verify(heads=given.heads, inputs=given.inputs)
    out = ROOT / given.model
    out.mkdir(parents=True, exist_ok=True)
    table = head_rows(verified)
    table.to_csv(out / "heads.csv", index=False, float_format="%.5g")
    verified.effects.to_csv(out / "effects.csv", index=False, float_format="%.5g")
    model = sinkscope.load(reference)
    batches = list(make_inputs(model, data, batch_size=8, limit=given.limit, kind=kind, **options).batches())
    prune_rows(model, batches, table).to_csv(out / "prune.csv", index=False, float_format="%.5g")
    facts = {name: verified.manifest[name] for name in ("n_inputs", "n_tokens", "packages")}
    asked = {"limit": given.limit, "inputs": given.inputs, "heads": given.heads}
    (out / "run.json").write_text(json.dumps({**asked, **facts}, indent=2) + "\n")


def head_rows(diagnosis: Any) -> pd.DataFrame:
    """One row per head: its verdict with the causal shares, and what the literature's rules say of its events."""
    kept = ["layer", "head", "kind", "n_inputs", "sink_rate", "event_rate", "role", "role_share", "mass_median"]
    kept += ["value_ratio_median", "update_ratio_median", "stable_rank_median", "nop", "broadcast", "other"]
    kept += ["silent", "constant", "content", "content_share", "content_share_low", "content_share_high"]
    heads = diagnosis.heads
    effects = [name for name in heads if name.startswith("effect_")]
    verdicts = diagnosis.verdicts.drop(columns=[*effects, "confidence", "n_verified", "verdict"], errors="ignore")
    causal = verdicts.rename(
        columns={n: f"causal_{n}" for n in verdicts if n.split("_")[0] in ("silent", "constant", "content")}
    )
    table = heads[[*kept, "verdict", "confidence", "n_verified", *effects]].merge(
        causal, on=["layer", "head"], how="left"
    )
    ratio = table["value_ratio_median"]
    sink = table["kind"] == "sink"
    table["fesser_says"] = (
        table[["nop", "broadcast", "other"]].fillna(0).idxmax(axis=1).where(table["event_rate"] > 0, "no event")
    )
    table["counts_says"] = np.select([~sink, ratio <= 0.2, ratio >= 0.5], ["no sink", "nop", "broadcast"], "other")
    return table


def prune_rows(model: Model, batches: list[Batch], heads: pd.DataFrame) -> pd.DataFrame:
    """What the model loses when the writes of all nop heads are removed together, and of as many others."""
    sinks = heads[heads["kind"] == "sink"]
    nop = sinks[sinks["verdict"] == "nop"]
    sets = {"nop": [_places(nop)]}
    for name, pool in {
        "other sink heads": sinks[sinks["verdict"] != "nop"],
        "any other head": heads.drop(nop.index),
    }.items():
        if len(pool) > len(nop):
            sets[name] = [_places(_drawn(pool, nop, seed)) for seed in range(DRAWS)]
        elif len(pool):
            sets[name] = [_places(pool)]
            sets[f"nop, as many ({name})"] = [_places(_drawn(nop, pool, seed)) for seed in range(DRAWS)]
    with Outputs(model) as outputs:
        before = outputs.of(batches, {})
        rows = [
            {
                "removed": name,
                "draw": draw,
                "heads": sum(map(len, places.values())),
                **outputs.change(batches, before, places),
            }
            for name, drawn in sets.items()
            for draw, places in enumerate(drawn)
        ]
    return pd.DataFrame(rows)


def _places(table: pd.DataFrame) -> dict[int, list[int]]:
    return {int(layer): [int(head) for head in of["head"]] for layer, of in table.groupby("layer")}


def _drawn(pool: pd.DataFrame, beside: pd.DataFrame, seed: int) -> pd.DataFrame:
    """As many heads of `pool` as are `beside` it, from the same layers as far as these have any, else from any."""
    generator = np.random.default_rng(seed)
    chosen: list[Any] = []
    for layer, count in beside["layer"].value_counts().items():
        here = pool.index[(pool["layer"] == layer).to_numpy()].to_numpy()
        chosen += list(generator.permutation(list(here))[:count])
    rest = pool.index.difference(chosen)
    missing = len(beside) - len(chosen)
    return pool.loc[[*chosen, *generator.permutation(list(rest))[:missing]]]


class Outputs:
    """Final tokens and the language-model loss of a model, with some heads writing nothing."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._removed: Mapping[int, list[int]] = {}

    def __enter__(self) -> Outputs:
        self._capture = capture(self.model.module, self._silence)
        self._calls = self._capture.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._capture.__exit__(*raised)

    def _silence(self, call: AttentionCall) -> None:
        if call.layer in self._removed:
            call.out[:, self._removed[call.layer]] = 0

    def of(
        self, batches: Iterable[Batch], removed: Mapping[int, list[int]]
    ) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """Per batch: final tokens (as the model returns them), loss per input where there are logits, valid tokens."""
        found = []
        for batch in batches:
            if self._calls._settled is None:
                self.model.run(batch)
                self._calls.settle()
            self._removed = removed
            kwargs = dict(batch.kwargs)
            ids = kwargs.get("input_ids")
            logits_wanted = ids is not None and hasattr(self.model.module, "lm_head")
            if logits_wanted:
                kwargs |= {"logits_to_keep": 0, "output_hidden_states": True}
            output = self.model.run(Batch(batch.index, batch.names, batch.args, kwargs))
            self._removed = {}
            tokens = output.hidden_states[-1] if logits_wanted else output.last_hidden_state
            loss = _losses(output.logits, ids) if logits_wanted else None
            valid = torch.ones(tokens.shape[:2], dtype=torch.bool) if batch.valid is None else batch.valid
            found.append((tokens, loss, valid))
        return found

    def change(self, batches: list[Batch], before: Any, removed: Mapping[int, list[int]]) -> dict[str, float]:
        """Relative RMS change of the final tokens, cosine of pooled ones, and the loss; means over inputs."""
        rms, cosine, losses, plain = [], [], [], []
        for (old, old_loss, valid), (new, new_loss, _) in zip(before, self.of(batches, removed), strict=True):
            kept = valid.unsqueeze(-1)
            change, size = ((new - old) * kept).square().sum((1, 2)), (old * kept).square().sum((1, 2))
            rms.append((change / size).sqrt())
            counts = kept.sum(1)
            cosine.append(torch.cosine_similarity((old * kept).sum(1) / counts, (new * kept).sum(1) / counts))
            if old_loss is not None:
                losses.append(new_loss)
                plain.append(old_loss)
        row = {"tokens_change": float(torch.cat(rms).mean()), "pooled_cosine": float(torch.cat(cosine).mean())}
        if losses:
            row |= {"loss_before": float(torch.cat(plain).mean()), "loss": float(torch.cat(losses).mean())}
        return row


def _losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Nats per token of each input."""
    return torch.stack(
        [torch.nn.functional.cross_entropy(row[:-1].float(), own[1:]) for row, own in zip(logits, ids, strict=True)]
    )


if __name__ == "__main__":
    main()
