"""How often is the tool right? Known mechanisms planted in heads of real models, diagnosed, edited and judged.

    python experiments/yardstick.py run --data FOLDER --runs FOLDER [--models dinov2,minilm,smollm2]
                                        [--part fit|score|both] [--process 0/1]
    python experiments/yardstick.py thresholds --runs FOLDER
    python experiments/yardstick.py tables --runs FOLDER

FOLDER of --data holds `images/` and `text.txt`. `run` plants one head in every even layer of a copy (part `fit`, on
which thresholds may be fitted) or in every odd one (part `score`, which is only scored), saves the copy as a
checkpoint, diagnoses it from its folder on 24 inputs that planting did not see (pictures of 224 pixels, texts of 64
tokens), verifies the planted sink heads, and removes the checkpoint. Heads of one copy lie in different layers and are
planted from the first layer to the last, each truth measured in that very copy: no later layer changes what an earlier
one reads. Copies that are done are not done again; `--process K/N` takes every N-th copy. `tables` judges the stored
edits with the thresholds of today, and writes experiments/results/yardstick: `heads.csv`, one row per planted head, and
`findings.md`. `thresholds` judges the part to fit on under other thresholds, for a table of the findings:
`thresholds.csv`, a minute.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _yardstick_cases import PARTS, SUBJECTS, copies
from _yardstick_tables import THRESHOLDS, write_tables
from _yardstick_thresholds import judged
from torch import Tensor

import sinkscope
from sinkscope._errors import InputError
from sinkscope.artifact import open_artifact, read_edits, without_verdicts
from sinkscope.explain import JudgeOptions, classify, get_rule, judge
from sinkscope.models import Model, make_inputs
from sinkscope.tasks import Plan, Planted, plant_all

OUT = Path(__file__).parent / "results" / "yardstick"
COUNT = 64
HELD_OUT = 24
LENGTH = 64
RULES = ("fesser", "fesser-counts")
TRUTH = "truth.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "thresholds", "tables"))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", default=",".join(SUBJECTS))
    parser.add_argument("--part", choices=(*PARTS, "both"), default="both")
    parser.add_argument("--process", default="0/1")
    parser.add_argument("--limit", type=int, help="at most so many copies of each model and part")
    given = parser.parse_args()
    if given.command == "thresholds":
        judged(sorted(path.parent for path in given.runs.glob(f"*/fit-*/{TRUTH}")), TRUTH).to_csv(
            OUT / THRESHOLDS, index=False
        )
        return
    if given.command == "tables":
        write_tables(rows(given.runs), OUT)
        return
    if given.data is None:
        parser.error("run needs --data")
    mine, of = (int(number) for number in given.process.split("/"))
    parts = tuple(PARTS) if given.part == "both" else (given.part,)
    for name in given.models.split(","):
        model = sinkscope.load(SUBJECTS[name].reference)
        tensor = inputs_of(model, given.data / SUBJECTS[name].data)
        for part in parts:
            for number, plans in copies(name, part):
                if number % of != mine or (given.limit is not None and number >= given.limit):
                    continue
                one_copy(model, tensor, plans, given.runs / name / f"{part}-{number:02d}")


def inputs_of(model: Model, path: Path) -> Tensor:
    """Model inputs, the first 40 to plant with, the others to diagnose."""
    supply = make_inputs(model, str(path), limit=COUNT, **({"length": LENGTH} if model.modality == "text" else {}))
    batches = list(supply.batches())
    found = [batch.args[0] if batch.args else next(iter(batch.kwargs.values())) for batch in batches]
    tensor = torch.cat(found)
    if len(tensor) < COUNT:
        raise InputError(f"{len(tensor)} inputs in {path}", f"{COUNT}", "give more")
    return tensor


def one_copy(model: Model, tensor: Tensor, plans: list[Plan], out: Path) -> None:
    """Plant, save, diagnose and verify, unless that is done."""
    if (out / TRUTH).is_file():
        return
    shutil.rmtree(out, ignore_errors=True)
    planted, dropped = planted_or_dropped(model, plans, tensor)
    with tempfile.TemporaryDirectory(prefix="sinkscope-yardstick-") as scratch:
        folder = planted.save(Path(scratch) / "planted")
        held_out = tensor[-HELD_OUT:]
        diagnosis = sinkscope.diagnose(str(folder), held_out, out)
        sinks = diagnosis.heads.query("kind == 'sink'")
        there = set(zip(sinks["layer"], sinks["head"], strict=True))
        chosen = [f"{t.layer}.{t.head}" for t in planted.truths if (t.layer, t.head) in there]
        truth = json.loads((folder / "planted.json").read_text(encoding="utf-8"))
        if chosen:
            diagnosis.verify(",".join(chosen), data=held_out)
    (out / TRUTH).write_text(json.dumps({"planted": truth, "dropped": dropped}, indent=1), encoding="utf-8")
    print(out, f"{len(truth)} planted, {sum(row['faithful'] for row in truth)} faithful", flush=True)  # noqa: T201


def planted_or_dropped(model: Model, plans: list[Plan], tensor: Tensor) -> tuple[Planted, list[str]]:
    """The copy with all heads but those that no strength makes look at their sink; these are named."""
    left, dropped = list(plans), []
    while True:
        try:
            return plant_all(model, left, make_inputs(model, tensor, batch_size=COUNT)), dropped
        except InputError as error:
            bad = next((plan for plan in left if f"head {plan.layer}.{plan.head} " in error.found), None)
            if bad is None:
                raise
            left.remove(bad)
            dropped.append(error.found)


def rows(runs: Path) -> pd.DataFrame:
    """One row per planted head: the truth, what the tool says, and what each rule of the literature says."""
    found = [row for folder in sorted(runs.glob("*/*-*")) if (folder / TRUTH).is_file() for row in copy_rows(folder)]
    if not found:
        sys.exit(f"no finished copy in {runs}")
    return pd.DataFrame(found)


def copy_rows(folder: Path) -> Iterator[dict[str, Any]]:
    artifact = open_artifact(folder)
    heads = without_verdicts(artifact.heads)
    edits = read_edits(folder) if (folder / "edits").is_dir() else None
    judged = heads if edits is None else judge(edits, heads, JudgeOptions()).heads
    verdicts = judged.set_index(["layer", "head"])
    events = artifact.events()
    events = events.assign(**{rule: classify(events, get_rule(rule)) for rule in RULES})
    table = heads.set_index(["layer", "head"])
    part, number = folder.name.split("-")
    for truth in json.loads((folder / TRUTH).read_text(encoding="utf-8"))["planted"]:
        place = truth["layer"], truth["head"]
        own = events[(events["layer"] == place[0]) & (events["head"] == place[1])]
        verdict = verdicts.loc[place] if place in verdicts.index else pd.Series(dtype=object)
        shares = {
            f"{kind}_{name}": value
            for kind in ("shares_asked", "shares")
            for name, value in zip(("silent", "constant", "content"), truth[kind] or (None,) * 3, strict=True)
        }
        said = {
            f"said_{name}": verdict.get(name)
            for share in ("silent", "constant", "content", "content_share")
            for name in (share, f"{share}_low", f"{share}_high")
        }
        kind = table.loc[place, "kind"]
        yield {
            "model": folder.parent.name,
            "part": part,
            "copy": int(number),
            **{name: value for name, value in truth.items() if not isinstance(value, list)},
            **shares,
            "kind": kind,
            "said": verdict.get("verdict") if kind == "sink" else "no sink",
            "confidence": verdict.get("confidence"),
            "n_verified": verdict.get("n_verified"),
            "reason": verdict.get("reason"),
            **said,
            **{f"drawn_{name}": table.loc[place, name] for name in ("silent", "constant", "content")},
            **{rule: _most(own[rule]) for rule in RULES},
        }


def _most(classes: pd.Series) -> str:
    """The class of most events of a head."""
    named = classes.dropna()
    return str(named.mode().iloc[0]) if len(named) else "no event"


if __name__ == "__main__":
    main()
