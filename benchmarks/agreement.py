"""How far every event column is from an independent float64 reference, family by family.

    python benchmarks/agreement.py [--batch 3] [--json FILE] [--absolute] [--families NAME,...]

The families, how each one's reference is obtained, and the tolerances are those of the tests. Numbers are the largest
difference over inputs, layers and heads, relative to the reference or to 0.01 where that is larger; `sink` and
`top_sinks` must be equal, and are checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests are no installed package

from tests._agreement import TOLERANCE, Difference, agreement
from tests._reference import COLUMNS
from tests.families.registry import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=3, help="inputs per family")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--absolute", action="store_true", help="print absolute differences")
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma-separated")
    options = parser.parse_args()
    found: dict[str, dict[str, Difference]] = {}
    for name in options.families.split(","):
        found[name] = agreement(FAMILIES[name], options.batch)
    worst = {column: _worst(found, column) for column in TOLERANCE}
    width = max(len(name) for name in (*found, "largest", "tolerance")) + 1
    print(f"{'largest difference':{width}}" + "".join(f"{_short(column):>10}" for column in COLUMNS))
    for name, columns in {**found, "largest": worst}.items():
        values = [columns[column].absolute if options.absolute else columns[column].relative for column in COLUMNS]
        print(f"{name:{width}}" + "".join(f"{value:10.1e}" for value in values))
    print(f"{'tolerance':{width}}" + "".join(f"{TOLERANCE[column]:10.1e}" for column in COLUMNS))
    if options.json:
        families = {
            name: {"reference": FAMILIES[name].how, "columns": {c: vars(d) for c, d in columns.items()}}
            for name, columns in found.items()
        }
        document = {"torch": torch.__version__, "batch": options.batch, "tolerance": TOLERANCE, "families": families}
        options.json.write_text(json.dumps(document, indent=1))
    if any(worst[column].relative > TOLERANCE[column] for column in TOLERANCE):
        sys.exit("a column is further from its reference than its tolerance")


def _worst(found: dict[str, dict[str, Difference]], column: str) -> Difference:
    result = Difference()
    for columns in found.values():
        result |= columns[column]
    return result


def _short(column: str) -> str:
    replaced = column.replace("hidden_norm", "norm").replace("_median", "_med").replace("entropy", "entr")
    return replaced.replace("stable_rank", "rank").replace("virtual_mass", "virtual").replace("_ratio", "_rat")


if __name__ == "__main__":
    main()
