"""Every column of the artifact's tables: name, type, meaning. The docs page is made from this list."""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1
SINK_MASS = 0.3
"""From this mass on a row counts for `sink_rate`, its sink's value is kept, and the shares are over it."""


@dataclass(frozen=True)
class Column:
    """One column: `kind` is an Arrow type name; `unit` is empty for shares, ratios and labels."""

    name: str
    kind: str
    meaning: str
    unit: str = ""


EVENT_COLUMNS: tuple[Column, ...] = (
    Column("input", "string", "name of the input: the file's name, else the running index"),
    Column("layer", "int32", "running number of the self-attention call in the forward pass, from 0"),
    Column("head", "int32", "query head, from 0"),
    Column("sink", "int32", "key with the largest mass among candidates; null when no key is a candidate"),
    Column("role", "string", "role of the sink token; null when the model's token order is not known"),
    Column("row", "int32", "patch row of the sink, null for tokens that are no patches"),
    Column("col", "int32", "patch column of the sink, null for tokens that are no patches"),
    Column("mass", "float32", "mean attention the sink receives from the valid queries that may see it"),
    Column("top_sinks", "list<int32>", "the four candidate keys of largest mass, largest first"),
    Column("top_masses", "list<float32>", "their masses"),
    Column("routed", "float32", "share of the sink's queries with weight >= 0.5 on it"),
    Column("min_mass", "float32", "smallest weight on the sink over its queries"),
    Column("value_ratio", "float32", "|v_s| / mean over the other valid keys of |v_j|"),
    Column(
        "update_ratio",
        "float32",
        "|u_s| / mean over the other valid keys of |u_j|, u = g * W_O v; null without projection",
    ),
    Column("stable_rank", "float32", "|U|_F^2 / sigma_1(U)^2 of the head's write U; null without projection"),
    Column("diagonal", "float32", "mean over valid queries of the weight on themselves"),
    Column("entropy", "float32", "mean over valid queries of the entropy of their weights", "nat"),
    Column(
        "entropy_share", "float32", "mean over valid queries that see two keys or more of entropy / log(visible keys)"
    ),
    Column("hidden_norm", "float32", "L2 norm of the block's input, before any norm, at the sink"),
    Column("hidden_norm_median", "float32", "median of that norm over valid tokens"),
    Column(
        "virtual_mass", "float32", "1 - mean row sum of the weights: what learned or virtual sinks take; 0 without one"
    ),
)
"""One row per input, layer and head, in `events/part-*.parquet`."""

SAMPLED_COLUMNS: tuple[Column, ...] = (
    Column("mass_se", "float32", "standard error of `mass` over the sampled queries (only with --queries K)"),
)

ROW_COLUMNS: tuple[Column, ...] = (
    Column("rows", "string", "what a query's weights on the tokens sum to: `one`, `at most one`, or `any` number"),
    Column("mass_raw", "float32", "mean weight on the sink as the model uses it, over the sink's queries"),
    Column("mass_normalised", "float32", "mean of |weight on the sink| / sum of |weights|, over the same queries"),
    Column("row_sum", "float32", "mean over valid queries of the sum of their weights on the tokens"),
)
"""Only in runs with a layer whose rows may sum to anything but one. `mass` and every column made of weights are of the
raw weights, but of the normalised ones where `rows` is `any`; there `virtual_mass` is null."""

MEDIAN_COLUMNS: tuple[str, ...] = (
    "mass",
    "routed",
    "min_mass",
    "value_ratio",
    "update_ratio",
    "stable_rank",
    "diagonal",
    "entropy",
    "entropy_share",
    "hidden_norm",
    "hidden_norm_median",
    "virtual_mass",
)
"""Event columns summarised per head as `X_median` with `X_median_low` and `X_median_high`."""

SHARES: tuple[str, ...] = ("silent", "constant", "content", "content_share")

HEAD_EFFECTS: tuple[str, ...] = ("zero", "mean", "donor", "ordinary", "redirect", "control")
"""Edits whose effect on the final tokens stands in the head table, as `effect_X` with `_low` and `_high`."""


def head_columns(*, verified: bool = False) -> tuple[Column, ...]:
    """Columns of `heads.parquet`, in order; `verified` with those that edits add, which come last."""
    columns = [
        Column("layer", "int32", "running number of the self-attention call, from 0"),
        Column("head", "int32", "query head, from 0"),
        Column("n_inputs", "int64", "inputs measured"),
    ]
    for name, meaning in (
        ("event_rate", "share of inputs that are an event under the manifest's rule"),
        ("sink_rate", "share of inputs whose sink has mass >= 0.3"),
    ):
        columns.append(Column(name, "float64", meaning))
        columns += [Column(f"{name}_{end}", "float64", f"Wilson 95% interval of {name}") for end in ("low", "high")]
    columns += [
        Column("role", "string", "most frequent role of the sink over inputs"),
        Column("role_share", "float64", "share of inputs with that role"),
    ]
    for name in MEDIAN_COLUMNS:
        columns.append(Column(f"{name}_median", "float64", f"median of {name} over inputs"))
        columns += [
            Column(f"{name}_median_{end}", "float64", f"bootstrap 95% interval of {name}_median")
            for end in ("low", "high")
        ]
    columns += [
        Column("kind", "string", "sink, uniform, diagonal, dead or none"),
        Column("nop", "int64", "events of class nop under the manifest's rule"),
        Column("broadcast", "int64", "events of class broadcast"),
        Column("other", "int64", "events of neither class"),
    ]
    for name in SHARES:
        columns.append(Column(name, "float64", f"{name} share of what the sink writes; null under 8 sink inputs"))
        columns += [Column(f"{name}_{end}", "float64", f"bootstrap 95% interval of {name}") for end in ("low", "high")]
    return (*columns, *_verdict_columns()) if verified else tuple(columns)


def _verdict_columns() -> list[Column]:
    columns = [
        Column(
            "verdict",
            "string",
            "nop, broadcast, bias, inert, undecided or no sink; null for sink heads that were not edited",
        ),
        Column(
            "confidence",
            "float64",
            "share of bootstrap resamples that give the word, or the one it leans to",
        ),
        Column("n_verified", "int64", "inputs the edits were made on"),
    ]
    for edit in HEAD_EFFECTS:
        meaning = f"relative RMS change of the final tokens under the edit {edit}"
        columns.append(Column(f"effect_{edit}", "float64", meaning))
        columns += [
            Column(f"effect_{edit}_{end}", "float64", f"bootstrap 95% interval of effect_{edit}")
            for end in ("low", "high")
        ]
    return columns


def verdict_columns() -> tuple[Column, ...]:
    """Columns of `verdicts.parquet`, in order: one row per head."""
    first, *rest = _verdict_columns()
    judged = {column.name: column for column in rest}
    columns = [
        Column("layer", "int32", "running number of the self-attention call, from 0"),
        Column("head", "int32", "query head, from 0"),
        first,
        judged.pop("confidence"),
        judged.pop("n_verified"),
        Column(
            "p_value",
            "float64",
            "one-sided p that the word does not hold; 1 between words",
        ),
        Column("q_value", "float64", "p_value adjusted by Benjamini-Hochberg over the edited sink heads"),
        Column("split_half", "bool", "whether both halves of the inputs give the same word; null under 16 inputs"),
        Column("n_needed", "int64", "inputs that would decide it; null if decided or if more would not help"),
    ]
    for name in SHARES:
        columns.append(Column(name, "float64", f"{name} share of what the sink does, from the effects of edits"))
        columns += [Column(f"{name}_{end}", "float64", f"bootstrap 95% interval of {name}") for end in ("low", "high")]
    columns.append(Column("specific", "float64", "effect of zero over that of control, scaled to the sink's mass"))
    columns += [Column(f"specific_{end}", "float64", "bootstrap 95% interval of specific") for end in ("low", "high")]
    return (*columns, Column("reason", "string", "why this word; for undecided what would decide it"), *judged.values())


EFFECT_COLUMNS: tuple[Column, ...] = (
    Column("layer", "int32", "running number of the self-attention call, from 0"),
    Column("head", "int32", "query head, from 0"),
    Column("edit", "string", "name of the edit"),
    Column("measure", "string", "what changed: a numeric column of the edit parts, or donor_cosine"),
    Column("value", "float64", "mean over inputs, draws averaged first; root of the mean square where it is an RMS"),
    Column("low", "float64", "lower end of the bootstrap 95% interval; null under 3 inputs"),
    Column("high", "float64", "upper end"),
    Column("n", "int64", "inputs"),
)
"""One row per head, edit and measure, in `effects.parquet`."""
