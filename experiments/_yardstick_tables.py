"""Tables of the yardstick: confusion, precision and recall, calibration, errors of shares, rules side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from _yardstick_matched import matched, rate
from _yardstick_thresholds import section

from sinkscope.artifact import write_text

WORDS = ("nop", "broadcast", "bias", "inert", "undecided", "no sink")
NAMED = ("nop", "broadcast", "bias")
NO_SINK = ("uniform", "diagonal", "dead")
RULES = ("fesser", "fesser-counts")
THRESHOLDS = "thresholds.csv"
MASS = 0.5
SHARES = ("silent", "constant", "content")
BINS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)


def expected(row: pd.Series) -> str:
    """The word that is true of a planted head; a mixture has none, its shares are scored."""
    if row["mechanism"] in NO_SINK:
        return "no sink"
    return str(row["mechanism"])


def write_tables(rows: pd.DataFrame, out: Path) -> None:
    """Write `heads.csv` and `findings.md`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = rows.assign(truth=rows.apply(expected, axis=1))
    rows.to_csv(out / "heads.csv", index=False, float_format="%.5g")
    lines = _counts(rows)
    for part, title in (
        ("score", "Odd layers, only scored"),
        ("fit", "Even layers, on which thresholds may be fitted"),
    ):
        chosen = rows[(rows["part"] == part) & rows["faithful"]]
        if len(chosen):
            lines += ["", f"#### {title}", *_part(chosen)]
    if (out / THRESHOLDS).is_file():
        lines += section(pd.read_csv(out / THRESHOLDS))
    write_text(out / "findings.md", "\n".join(lines) + "\n")


def _counts(rows: pd.DataFrame) -> list[str]:
    table = rows.groupby(["model", "mechanism", "part"])["faithful"].agg(["size", "sum"]).unstack(fill_value=0)
    table = table.swaplevel(axis=1).sort_index(axis=1)
    lines = [
        f"{len(rows)} planted heads, {int(rows['faithful'].sum())} of them faithful: what was asked was reached, as "
        "measured on held-out inputs from weights and hidden states. The others are not scored.",
        "",
        "| model | mechanism | faithful of planted, fit | score |",
        "| --- | --- | --- | --- |",
    ]
    for (model, mechanism), row in table.iterrows():
        cells = [f"{row.get((part, 'sum'), 0)} of {row.get((part, 'size'), 0)}" for part in ("fit", "score")]
        lines.append(f"| {model} | {mechanism} | {cells[0]} | {cells[1]} |")
    change = rows.groupby(["model", "part", "copy"])["output_change"].first()
    spread = ", ".join(f"{model} {value:.2f}" for model, value in change.groupby("model").median().items())
    return [*lines, "", f"Change of the last hidden states by planting, median over copies, relative RMS: {spread}."]


def _part(rows: pd.DataFrame) -> list[str]:
    pure = rows[rows["truth"] != "mixture"]
    strong = pure[(pure["mass"] >= MASS) | (pure["truth"] == "no sink")]
    weak = pure[(pure["mass"] < MASS) & (pure["truth"] != "no sink")]
    return [
        *_confusion(f"Measured mass >= {MASS}, and heads without a sink", strong),
        *_confusion(f"Measured mass < {MASS}", weak),
        *_scores(strong),
        *matched(pure),
        *_calibration(pure),
        *_share_errors(rows[rows["shares_silent"].notna() & (rows["mechanism"] != "inert")]),
    ]


def _confusion(title: str, rows: pd.DataFrame) -> list[str]:
    if not len(rows):
        return []
    table = pd.crosstab(rows["truth"], rows["said"].fillna("not verified"))
    names = [*WORDS, *(name for name in table.columns if name not in WORDS)]
    lines = ["", f"##### {title}", "", _row(["planted", *names]), _row(["---"] * (len(names) + 1))]
    for truth in [word for word in WORDS if word in table.index]:
        lines.append(_row([truth, *(str(table.loc[truth].get(name, 0)) for name in names)]))
    return lines


def _scores(rows: pd.DataFrame) -> list[str]:
    """Precision, recall and F1 of the three words; the rules know no bias."""
    lines = ["", "##### Precision and recall, with Wilson's 95% intervals", ""]
    lines += [_row(["judge", "word", "precision", "recall", "F1", "undecided or other"]), _row(["---"] * 6)]
    for judge in ("said", *RULES):
        for word in NAMED if judge == "said" else NAMED[:2]:
            true, called = rows["truth"] == word, rows[judge] == word
            hit = int((true & called).sum())
            precision, recall = rate(hit, int(called.sum())), rate(hit, int(true.sum()))
            f1 = 2 * hit / max(1, int(called.sum()) + int(true.sum()))
            open_ = int((true & rows[judge].isin(["undecided", "other", "no event"])).sum())
            name = "sinkscope" if judge == "said" else judge
            lines.append(_row([name, word, precision, recall, f"{f1:.3f}", str(open_)]))
    bias = rows[rows["truth"] == "bias"]
    for rule in RULES:
        said = ", ".join(f"{name} {count}" for name, count in bias[rule].value_counts().items())
        lines += ["", f"The {len(bias)} bias heads under {rule}: {said}."]
    return lines


def _calibration(rows: pd.DataFrame) -> list[str]:
    """How often a word is right, by the confidence that is stated with it."""
    decided = rows[rows["said"].isin(["nop", "broadcast", "bias", "inert"]) & rows["confidence"].notna()]
    lines = [
        "",
        "##### Calibration of the stated confidence",
        "",
        _row(["confidence", "heads", "mean stated", "right"]),
    ]
    lines.append(_row(["---"] * 4))
    places = pd.cut(decided["confidence"].astype(float), BINS, include_lowest=True)
    for interval, group in decided.groupby(places, observed=True):
        right = int((group["said"] == group["truth"]).sum())
        stated = f"{group['confidence'].astype(float).mean():.3f}"
        lines.append(
            _row([f"{interval.left:g} to {interval.right:g}", str(len(group)), stated, rate(right, len(group))])
        )
    return lines


def _share_errors(rows: pd.DataFrame) -> list[str]:
    """Stated shares against those measured from weights and hidden states, on the same inputs."""
    lines = ["", "##### Error of the shares, all sink heads with mixtures", ""]
    lines += [_row(["share", "of edits: mean absolute error", "median", "interval holds the truth", "of values: mean"])]
    lines.append(_row(["---"] * 5))
    for share in SHARES:
        truth = rows[f"shares_{share}"].astype(float)
        said, drawn = rows[f"said_{share}"].astype(float), rows[f"drawn_{share}"].astype(float)
        low, high = rows[f"said_{share}_low"].astype(float), rows[f"said_{share}_high"].astype(float)
        known = said.notna()
        if not known.any():
            continue
        error = (said - truth).abs()[known]
        held = int(((low <= truth + 1e-9) & (truth - 1e-9 <= high))[known].sum())
        rest = (drawn - truth).abs()
        lines.append(
            _row(
                [
                    share,
                    f"{error.mean():.3f}",
                    f"{error.median():.3f}",
                    rate(held, int(known.sum())),
                    f"{rest.mean():.3f}",
                ]
            )
        )
    return lines


def _row(cells: Iterable[str] | Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
