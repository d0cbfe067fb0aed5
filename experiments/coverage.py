"""Do the 95% intervals of effects and shares cover the truth? By simulation, over few and many inputs.

    python experiments/coverage.py [--repeats 2000] [--resamples 2000] [--out experiments/results/coverage]

Effects of single inputs are drawn from distributions whose mean is known exactly; the intervals are those that
`sinkscope verify` gives, beside the plain percentile bootstrap from the same resamples. Three statistics: the root of
the mean square (every effect), the root of a ratio of two means (`specific`), and a share (a mean over the mean of
what it is part of). Written: `coverage.csv`, `findings.md`, `log.txt`. Takes about half a minute on one thread.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from sinkscope.artifact import write_text
from sinkscope.explain._resamples import intervals, resample_weights

ROOT = Path(__file__).parents[1]
OUT = ROOT / "experiments" / "results" / "coverage"
INPUTS = (8, 16, 32, 64)

Sample = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

DISTRIBUTIONS: dict[str, Sample] = {
    "nearly equal: log-normal, sigma 0.2": lambda rng, shape: rng.lognormal(-0.02, 0.2, shape),
    "gamma, shape 2": lambda rng, shape: rng.gamma(2, 1 / 2, shape),
    "square of a normal": lambda rng, shape: rng.standard_normal(shape) ** 2,
    "heavy tail: log-normal, sigma 1": lambda rng, shape: rng.lognormal(-0.5, 1, shape),
    "one input in five ten times as strong": lambda rng, shape: (
        np.where(rng.random(shape) < 0.2, 10, 1) * rng.gamma(8, 1 / 8, shape) / 2.8
    ),
}
"""Squared effect of one input; each has mean 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    started = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    rows: list[dict[str, object]] = []
    for n in INPUTS:
        weights = resample_weights(n, options.resamples, options.seed)
        for name, sample in DISTRIBUTIONS.items():
            for statistic, (truth, given) in _statistics(sample, weights, (n, options.repeats), rng).items():
                known = np.full(options.repeats, n)
                low, high = intervals(given, n, known, ratios=statistic != "root mean square")
                plain_low, plain_high = np.quantile(given[1:-n], (0.025, 0.975), axis=0)
                rows.append(
                    {
                        "statistic": statistic,
                        "effects": name,
                        "inputs": n,
                        "coverage": np.mean((low <= truth) & (truth <= high)),
                        "above": np.mean(low > truth),
                        "below": np.mean(high < truth),
                        "width": np.median(high - low),
                        "percentile_coverage": np.mean((plain_low <= truth) & (truth <= plain_high)),
                        "percentile_width": np.median(plain_high - plain_low),
                    }
                )
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "coverage.csv", table.to_csv(index=False, float_format="%.4f"))
    write_text(options.out / "findings.md", _markdown(table, options.repeats, options.resamples))
    log = [
        f"python {Path(sys.argv[0]).name} --repeats {options.repeats} --resamples {options.resamples} "
        f"--seed {options.seed}",
        f"Python {platform.python_version()}, NumPy {np.__version__}",
        f"{time.perf_counter() - started:.0f} seconds",
    ]
    write_text(options.out / "log.txt", "\n".join(log) + "\n")


def _statistics(
    sample: Sample, weights: np.ndarray, shape: tuple[int, int], rng: np.random.Generator
) -> dict[str, tuple[float, np.ndarray]]:
    """The truth of each statistic, and its values under all weights. In the ratio both means vary, with a scale of the
    input in common; the share of single inputs varies between 0 and 1, with mean 1/4."""
    scale = sample(rng, shape)
    first, second = (weights @ (scale * sample(rng, shape)) for _ in range(2))
    whole = weights @ scale
    return {
        "root mean square": (1.0, np.sqrt(whole)),
        "root of a ratio": (0.5, np.sqrt(first / second / 4)),
        "share": (0.25, weights @ (scale * rng.beta(1, 3, shape)) / whole),
    }


def _markdown(table: pd.DataFrame, repeats: int, resamples: int) -> str:
    error = np.sqrt(0.95 * 0.05 / repeats)
    lines = [
        "Share of simulated heads whose 95% interval holds the true value; in brackets that of the plain percentile "
        f"bootstrap. {repeats:,} heads per cell, {resamples:,} resamples; the standard error of a cell is {error:.1%}.",
    ]
    for statistic, part in table.groupby("statistic", sort=False):
        lines += ["", f"#### {str(statistic).capitalize()}", ""]
        lines += ["| effects of single inputs | " + " | ".join(f"{n} inputs" for n in INPUTS) + " |"]
        lines += ["|---|" + "---|" * len(INPUTS)]
        for name, row in part.groupby("effects", sort=False):
            cells = [
                f"{ours:.1%} ({plain:.1%})"
                for ours, plain in row[["coverage", "percentile_coverage"]].itertuples(index=False)
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
