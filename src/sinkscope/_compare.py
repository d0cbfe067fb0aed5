"""Diagnoses side by side: their tables, and what their models do with the same inputs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sinkscope import __version__
from sinkscope._diagnosis import Diagnosis
from sinkscope._errors import OptionError
from sinkscope.artifact import (
    COMPARED_INPUT_COLUMNS,
    Artifact,
    ComparisonTables,
    open_artifact,
    read_comparison,
    require_comparison_folder,
    write_comparison,
)
from sinkscope.explain import (
    Rows,
    Rule,
    compared_heads,
    comparison_sentences,
    measure_table,
    measures,
    read_rows,
    same_heads,
    same_inputs,
    transitions,
)

if TYPE_CHECKING:
    from torch import nn

    from sinkscope.models import Model

SCHEMA = 1
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Comparison:
    """A comparison of diagnoses: what is in its folder. The first diagnosis, number 0 and letter A, is the base.

    - `path`: the folder.
    - `tables`: all of it.
    """

    path: Path
    tables: ComparisonTables

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was compared, how, and what could not be: `comparison.json`."""
        return self.tables.facts

    @property
    def measures(self) -> pd.DataFrame:
        """One row per model, measure and, where it has layers, layer; columns of `comparison.parquet`."""
        return self.tables.measures

    @property
    def heads(self) -> pd.DataFrame:
        """One row per compared diagnosis and head; columns of its `heads.parquet`. Empty when heads differ."""
        return self.tables.heads

    @property
    def inputs(self) -> pd.DataFrame:
        """One row per model and input; columns of `inputs.parquet`. Empty when no model was run."""
        return self.tables.inputs

    @property
    def transitions(self) -> pd.DataFrame:
        """How many heads went from which state to which: `model`, `before`, `after`, `heads`."""
        return transitions(self.heads)

    def summary(self) -> str:
        """Which diagnoses these are, notes if there are any, and a few sentences per compared diagnosis."""
        return "\n".join([*self.facts["titles"], *(f"note: {note}" for note in self.facts["notes"]), *_said(self)])

    def report(self, path: Path | str | None = None) -> Path:
        """Write the offline page, `compare.html` in the folder unless `path` says otherwise.

        **Raises:** `MissingExtraError` without the `report` extra.
        """
        from sinkscope.report import write_comparison_page

        return write_comparison_page(self.path, None if path is None else Path(path))


def open_comparison(path: Path | str) -> Comparison:
    """Open a comparison from its folder. **Raises:** `ArtifactError` when it holds none, or a damaged one."""
    return Comparison(Path(path), read_comparison(Path(path)))


def compare(
    *diagnoses: Path | str | Diagnosis,
    out: Path | str | None = None,
    outputs: bool = True,
    limit: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    models: Sequence[nn.Module | Model | str | None] | None = None,
    data: Any = None,
    trust_remote_code: bool = False,
    on_input: Callable[[int, int, int | None], None] | None = None,
    command: str | None = None,
) -> Comparison:
    """Compare finished diagnoses, verified or not, with the first of them.

    Numbers of whole models stand side by side, with bootstrap intervals over inputs: those of changes are paired where
    the inputs are the same. Where models have the same layers and heads, heads are compared one by one. Then the models
    are run on the inputs of the first diagnosis, as each of them takes these, and their final tokens, outputs and
    outliers are compared. What cannot be compared is left out and said in `facts["notes"]`.

    **Arguments:**

    - `diagnoses`: two or more, or their folders.
    - `out`: where tables go; by default a folder in that of the last diagnosis. A comparison there is replaced.
    - `outputs`: whether to run the models.
    - `limit`: run them on the first inputs only; tables of the diagnoses are compared whole.
    - `device`: where they run.
    - `seed`: of the bootstrap.
    - `models`: per diagnosis the model anew, where no reference can load it; else None.
    - `data`: the inputs of the first diagnosis anew, as `diagnose` took them, where no path can.
    - `on_input`: called after each pass with the number of the model, inputs done and of how many.

    **Raises:** `ArtifactError` for folders that are no finished diagnoses, and an `out` that holds something else;
    `OptionError` for less than two diagnoses and other options that cannot be.
    """
    artifacts = [given.artifact if isinstance(given, Diagnosis) else open_artifact(given) for given in diagnoses]
    _check(artifacts, limit, seed, models)
    folder = Path(out) if out is not None else _default_folder(artifacts)
    require_comparison_folder(folder)
    letters = LETTERS[: len(artifacts)]
    rule = Rule.from_dict(artifacts[0].manifest["rule"])
    rows = [read_rows(artifact, rule) for artifact in artifacts]
    paired = [number == 0 or same_inputs(rows[0], one) for number, one in enumerate(rows)]
    numbers, notes = [measures(rows, paired, seed)], _notes(rows, paired, letters)
    inputs = pd.DataFrame(columns=[column.name for column in COMPARED_INPUT_COLUMNS])
    reasons: list[str | None] = ["not asked for"] * len(artifacts)
    if outputs:
        from sinkscope._compare_outputs import compare_outputs

        ran = compare_outputs(
            artifacts,
            letters,
            limit=limit,
            device=device,
            seed=seed,
            trust_remote_code=trust_remote_code,
            models=models or [None] * len(artifacts),
            data=data,
            on_input=on_input,
        )
        numbers += ran.measures
        reasons = ran.reasons
        notes += ran.notes
        notes += [
            f"the model of {letter} was not run: {why}" for letter, why in zip(letters, reasons, strict=True) if why
        ]
        if ran.inputs:
            inputs = pd.concat(ran.inputs, ignore_index=True)
    heads = compared_heads(rows[0], list(zip(range(1, len(rows)), rows[1:], paired[1:], strict=True)), seed)
    table = measure_table(pd.concat([measure_table(part) for part in numbers], ignore_index=True))
    facts = {
        "schema": SCHEMA,
        "sinkscope": __version__,
        "command": command or _call(artifacts, outputs, limit, seed),
        "options": {"outputs": outputs, "limit": limit, "seed": seed},
        "rule": artifacts[0].manifest["rule"],
        "titles": [_title(letter, artifact) for letter, artifact in zip(letters, artifacts, strict=True)],
        "models": [
            _model(letter, one, paired[number], same_heads(rows[0], one), reasons[number])
            for number, (letter, one) in enumerate(zip(letters, rows, strict=True))
        ],
        "notes": notes,
        "sentences": [comparison_sentences(table, heads, letters, number) for number in range(1, len(rows))],
    }
    tables = ComparisonTables(facts, table, heads, _typed(inputs))
    write_comparison(folder, tables)
    return open_comparison(folder)


def _check(artifacts: Sequence[Artifact], limit: int | None, seed: int, models: Sequence[Any] | None) -> None:
    if not 2 <= len(artifacts) <= len(LETTERS):
        raise OptionError(
            f"{len(artifacts)} {'diagnosis' if len(artifacts) == 1 else 'diagnoses'} to compare",
            f"2 to {len(LETTERS)}",
            "sinkscope compare BEFORE AFTER, with folders that sinkscope diagnose has written",
        )
    given: tuple[tuple[str, Any, int], ...] = (("limit", limit, 1), ("seed", seed, 0))
    for name, value, least in given:
        if value is not None and (not isinstance(value, int) or value < least):
            raise OptionError(f"{name} is {value!r}", f"a whole number from {least} on", f"correct --{name}")
    if models is not None and len(models) != len(artifacts):
        raise OptionError(
            f"{len(models)} models for {len(artifacts)} diagnoses", "one each, or None", "give models=[None, MODEL]"
        )


def _default_folder(artifacts: Sequence[Artifact]) -> Path:
    others = "-".join(artifact.path.resolve().name for artifact in artifacts[:-1])
    return artifacts[-1].path / f"compare-{others}"


def _notes(rows: Sequence[Rows], paired: Sequence[bool], letters: str) -> list[str]:
    base, notes = rows[0].artifact.manifest, []
    for letter, one, pair in zip(letters[1:], rows[1:], paired[1:], strict=True):
        own = one.artifact.manifest
        if not pair:
            notes.append(
                f"the inputs of {letter} are not known to be those of A ({_inputs(own)}, {_inputs(base)}): the tables "
                "of the diagnoses are compared without pairing, and differences may come from the inputs"
            )
        if own["model"]["weights_sha256"] == base["model"]["weights_sha256"]:
            notes.append(f"{letter} has the weights of A")
        if pair and own["n_tokens"] != base["n_tokens"]:
            notes.append(
                f"{letter} has {_tokens(own)} tokens per input and A {_tokens(base)}: the tokens that only one of them "
                "has are queries and keys like the others, so masses and what follows from them can differ even where "
                "the models do the same"
            )
        if not same_heads(rows[0], one):
            notes.append(f"heads are not compared one by one: {letter} has {_shape(one)}, A has {_shape(rows[0])}")
        if own["rule"] != base["rule"]:
            notes.append(
                f"events of {letter} are counted anew by the rule {base['rule']['name']} of A; its own is "
                f"{own['rule']['name']}"
            )
    verified = ["verdict" in one.artifact.heads for one in rows]
    if any(verified) and not all(verified):
        missing = ", ".join(letter for letter, done in zip(letters, verified, strict=True) if not done)
        notes.append(
            f"no heads were edited in {missing}, so heads are compared with it by kind, not by verdict: run sinkscope "
            "verify there"
        )
    for letter, one in zip(letters, rows, strict=True):
        layers = one.artifact.manifest["coverage"]["layers"]
        if unseen := sum(layer["projection"] is None for layer in layers):
            notes.append(
                f"the output projection of {unseen} of {len(layers)} layers of {letter} was not found: what sinks "
                "write there, and classes that need it, are not known"
            )
        queries = one.artifact.manifest["options"].get("queries", "all")
        if queries != "all":
            notes.append(
                f"masses of {letter} are estimates from {queries} queries per input; intervals are over inputs and do "
                "not include that"
            )
    return notes


def _inputs(manifest: Mapping[str, Any]) -> str:
    location = manifest["inputs"].get("location") or manifest["inputs"]["kind"]
    return f"{manifest['n_inputs']} inputs from {location}"


def _tokens(manifest: Mapping[str, Any]) -> str:
    low, high = manifest["n_tokens"]
    return f"{low}" if low == high else f"{low} to {high}"


def _shape(rows: Rows) -> str:
    sizes = rows.artifact.heads.groupby("layer").size()
    heads = str(sizes.min()) if sizes.nunique() == 1 else f"{sizes.min()} to {sizes.max()}"
    return f"{len(sizes)} layers of {heads} heads"


def _title(letter: str, artifact: Artifact) -> str:
    manifest = artifact.manifest
    notes = "".join(f"; {note}" for note in manifest["model"]["notes"])
    return f"{letter}  {manifest['model']['reference']} ({artifact.path}, {manifest['n_inputs']} inputs){notes}"


def _model(letter: str, rows: Rows, paired: bool, heads: bool, reason: str | None) -> dict[str, Any]:
    manifest = rows.artifact.manifest
    names = ("reference", "class", "modality", "weights_sha256", "parameters", "dtype", "notes")
    return {
        "letter": letter,
        "folder": str(rows.artifact.path),
        **{name: manifest["model"][name] for name in names},
        "n_inputs": manifest["n_inputs"],
        "inputs": manifest["inputs"],
        "shape": _shape(rows),
        "verified": "verdict" in rows.artifact.heads,
        "same_inputs": paired,
        "same_heads": heads,
        "not_run": reason,
    }


def _typed(inputs: pd.DataFrame) -> pd.DataFrame:
    kinds = {"int32": "int32", "string": "object", "float64": "float64"}
    return inputs.astype({column.name: kinds[column.kind] for column in COMPARED_INPUT_COLUMNS})


def _call(artifacts: Sequence[Artifact], outputs: bool, limit: int | None, seed: int) -> str:
    words = ["sinkscope", "compare", *(str(artifact.path) for artifact in artifacts)]
    words += [] if outputs else ["--no-outputs"]
    words += [] if limit is None else ["--limit", str(limit)]
    words += [] if seed == 0 else ["--seed", str(seed)]
    return shlex.join(words)


def _said(comparison: Comparison) -> list[str]:
    several = len(comparison.facts["sentences"]) > 1
    return [
        f"{letter}: {sentence}" if several else sentence
        for letter, sentences in zip(LETTERS[1:], comparison.facts["sentences"], strict=False)
        for sentence in sentences
    ]
