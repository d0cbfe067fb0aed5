"""Do `sinkscope diagnose` and `verify` name the mechanism that a task plants? The confusion table over tasks and seeds.

    python experiments/confusion.py FOLDER ... [--limit 256] [--out experiments/results/confusion]

Each FOLDER is what `sinkscope toy` has written, with any number of runs. Every run that has not diverged is diagnosed
on held-out inputs of its task, and each head gets the name of a mechanism from its row of `heads.parquet` alone; the
rule stands at `mechanism`. Then it is verified: the verdict of causal edits stands beside that name. Beside them stand
networks whose weights are written down so that they solve their task (tests/tasks/_constructions.py). Written:
`heads.csv`, one row per run and head; `runs.csv`, one row per run; `confusion.md`. Takes a few seconds per run, on one
thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import sinkscope
from sinkscope import tasks
from sinkscope._errors import OptionError, SinkError
from sinkscope.artifact import write_text
from sinkscope.tasks import Network, NetworkOptions, Task
from sinkscope.train import finished_runs, read_run, run_labels

ROOT = Path(__file__).parents[1]
OUT = ROOT / "experiments" / "results" / "confusion"

SINK_RATE = 1 / 3
EDITED_INPUTS = 32
ENERGY = 1 / 4

HEAD_COLUMNS = (
    "layer",
    "head",
    "role",
    "sink_rate",
    "event_rate",
    "mass_median",
    "update_ratio_median",
    "stable_rank_median",
    "silent",
    "constant",
    "content",
)


def mechanism(head: Mapping[str, Any]) -> str:
    """The naming rule: the mechanism of one row of `heads.parquet`, `none` for a head that is no sink.

    - A sink head is of kind `sink`, and its sink has mass >= 0.3 on at least a third of the inputs.
    - `broadcast` when the content that it writes has at least a quarter of an ordinary token's energy, which is half
      its norm: Fesser et al. 2026 ask as much of a broadcast (update_ratio >= 0.5). Else `bias` when the constant part
      has, else `nop`.
    - `undecided` where these parts are not known.
    """
    if head["kind"] != "sink" or head["sink_rate"] < SINK_RATE:
        return "none"
    if pd.isna(head["content"]) or pd.isna(head["constant"]):
        return "undecided"
    if head["content"] >= ENERGY:
        return "broadcast"
    return "bias" if head["constant"] >= ENERGY else "nop"


def by_verdict(head: Mapping[str, Any]) -> str:
    """The verdict of a head that is a sink head as in `mechanism`, else `none`."""
    if head["sink_rate"] < SINK_RATE or head["verdict"] == "no sink" or pd.isna(head["verdict"]):
        return "none"
    return str(head["verdict"])


def fesser(head: Mapping[str, Any]) -> str:
    """The class of most of the head's events under the rule fesser; `no event` without any."""
    counts = {name: head[name] for name in ("nop", "broadcast", "other") if not pd.isna(head[name])}
    return max(counts, key=lambda name: int(counts[name])) if any(counts.values()) else "no event"


def named(mechanisms: Iterable[str]) -> str:
    """What a network is called: `mixed` with heads of nop and of broadcast, `none` without a sink head."""
    found = set(mechanisms) - {"none"}
    if found >= {"nop", "broadcast"}:
        return "mixed"
    return " + ".join(sorted(found)) or "none"


@dataclass(frozen=True)
class Case:
    """One network: `front` are its columns, `diagnose` gives its table of heads."""

    front: Mapping[str, Any]
    heads: pd.DataFrame


def trained(folders: Sequence[Path], limit: int) -> Iterator[Case]:
    """Runs of `sinkscope toy`. **Raises:** `OptionError` when a folder holds none."""
    for folder in folders:
        if not finished_runs(folder):
            raise OptionError(f"{folder} holds no finished run", "an --out folder of `sinkscope toy`", "check the path")
    for folder in folders:
        found = [read_run(run) for run in finished_runs(folder)]
        records = [record for record in found if not record.result.diverged]
        for record, setting in zip(records, run_labels(records), strict=True):
            front = _front(folder.resolve().name, setting, record.options.task, record.options.network)
            front |= {"seed": record.options.seed, "solved": record.result.solved}
            diagnosis = sinkscope.diagnose(f"toy:{record.folder}", limit=limit, batch_size=64)
            yield Case(front, _verified(diagnosis).heads)


def constructed(limit: int) -> Iterator[Case]:
    """Networks with written-down weights, in float64."""
    sys.path.insert(0, str(ROOT))
    from tests.tasks import _constructions as made

    nop, broadcast, mixed, trigger, tag = (
        tasks.nop(), tasks.broadcast(), tasks.mixed(), tasks.trigger(), tasks.catch_tag_release(),
    )  # fmt: skip
    networks: list[tuple[Task, Network]] = [
        (nop, made.solved_nop(nop, 0.0)[0]),
        (broadcast, made.solved_broadcast(broadcast, 2)),
        (mixed, made.solved_mixed(mixed, 0.0)),
        (trigger, made.solved_trigger(trigger, "softmax")),
        (tag, made.solved_catch_tag_release(tag)),
    ]
    for task, network in networks:
        inputs = next(task.stream(1, limit, split="evaluation")).inputs.double()
        front = _front("constructed", task.name, task, network.options) | {"seed": None, "solved": True}
        diagnosis = sinkscope.diagnose(network, inputs, batch_size=64)
        yield Case(front, _verified(diagnosis, model=network, data=inputs).heads)


def _verified(diagnosis: sinkscope.Diagnosis, **given: Any) -> sinkscope.Diagnosis:
    return diagnosis.verify(inputs=EDITED_INPUTS, **given)


def _front(source: str, setting: str, task: Task, network: NetworkOptions) -> dict[str, Any]:
    return {
        "from": source,
        "setting": setting,
        "task": task.name,
        "form": network.form,
        "layers": network.layers,
        "heads": network.heads,
        "planted": task.mechanism,
    }


def tables(cases: Iterable[Case]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per head; one row per network, with what it is called."""
    parts, runs = [], []
    for case in cases:
        rows: list[dict[str, Any]] = case.heads.to_dict("records")  # type: ignore[assignment]
        names, classes = [mechanism(row) for row in rows], [fesser(row) for row in rows]
        verdicts = [by_verdict(row) for row in rows]
        found = case.heads[list(HEAD_COLUMNS)].assign(mechanism=names, fesser=classes, verdict=verdicts)
        front = pd.DataFrame([case.front] * len(found), index=found.index, columns=list(case.front))
        parts.append(front.join(found))
        runs.append({**case.front, "named": named(names), "verdict": named(verdicts)})
    return pd.concat(parts, ignore_index=True), pd.DataFrame(runs).astype({"seed": "Int64"})


def page(heads: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The tables in Markdown."""
    judged = runs[runs["solved"] & (runs["form"] == "softmax")]
    sinks = judged[judged["verdict"] != "none"]
    right, causal = (int((sinks[name] == sinks["planted"]).sum()) for name in ("named", "verdict"))
    sections = [
        "# Named and planted mechanisms",
        f"{len(judged)} softmax networks solve their task, {len(judged) - len(sinks)} of them without a sink head. "
        f"Of the others {right} of {len(sinks)} are called what the task plants by the signatures of their heads, "
        f"{causal} by the verdicts of causal edits. Made by `experiments/confusion.py`; its rule for names is there, "
        "at `mechanism`.",
        "## Softmax, solved: by verdict",
        _counted(judged, ["from", "task", "planted"], "verdict"),
        "## Softmax, solved: by signature",
        _counted(judged, ["from", "task", "planted"], "named"),
        "## Every setting, by verdict",
        _counted(runs, ["from", "setting", "planted", "solved"], "verdict"),
        "## Heads of solved networks, by layer",
        _by_layer(heads[heads["solved"]]),
    ]
    return "\n\n".join(sections) + "\n"


def _counted(runs: pd.DataFrame, by: list[str], name: str) -> str:
    """How many networks got which name; what is planted first, other names in the order of the alphabet."""
    counts = runs.groupby([*by, name], sort=False).size().unstack(fill_value=0)
    first = [word for word in ("nop", "broadcast", "bias", "mixed", "none") if word in counts.columns]
    counts = counts[[*first, *sorted(set(counts.columns) - set(first))]]
    return _markdown(counts.rename(columns=lambda word: f"named {word}").reset_index())


def _by_layer(heads: pd.DataFrame) -> str:
    medians = ["sink_rate", "mass_median", "update_ratio_median", "stable_rank_median", "silent", "constant", "content"]
    groups = heads.groupby(["from", "setting", "layer", "verdict", "mechanism", "fesser"], sort=False)
    table = pd.concat([groups.size().rename("number"), groups[medians].median()], axis=1)
    return _markdown(table.rename(columns=lambda name: name.removesuffix("_median")).reset_index())


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--limit", type=int, default=256, help="inputs per network")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    try:
        heads, runs = tables([*constructed(chosen.limit), *trained(chosen.folders, chosen.limit)])
    except SinkError as error:
        parser.error(str(error))
    text = page(heads, runs)
    for name, content in (
        ("heads.csv", heads.to_csv(index=False, float_format="%.5g")),
        ("runs.csv", runs.to_csv(index=False)),
        ("confusion.md", text),
    ):
        write_text(chosen.out / name, content)
    print(text)  # noqa: T201 - a script


if __name__ == "__main__":
    main()
