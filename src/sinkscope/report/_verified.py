"""What the page needs of an artifact whose sink heads were edited."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from sinkscope._errors import ArtifactError
from sinkscope.artifact import Artifact, Verification, read_verification
from sinkscope.explain import Prescription, prescribe
from sinkscope.report._style import VERDICT_COLOURS


@dataclass(frozen=True)
class Verified:
    """Verdicts and their evidence.

    - `verdicts`: the table of verdicts, of edited heads only, in the order of the words, then of the heads.
    - `effects`: the table of effects.
    - `run`: what `edits/verification.json` says about the edits.
    - `prescription`: what to do about it.
    """

    verdicts: pd.DataFrame
    effects: pd.DataFrame
    run: Verification
    prescription: Prescription


def read_verified(artifact: Artifact) -> Verified | None:
    """What edits have added to `artifact`; None where no head was edited.

    **Raises:** `ArtifactError` where a part of it is missing or damaged.
    """
    if "verdict" not in artifact.heads:
        return None
    verdicts, effects = artifact.verdicts, artifact.effects
    run = read_verification(artifact.path / "edits")
    if verdicts is None or effects is None or run is None:
        raise ArtifactError(
            f"heads.parquet of {artifact.path} has verdicts, but their evidence is not whole",
            "verdicts.parquet, effects.parquet and edits/verification.json beside it",
            f"run `sinkscope verify {artifact.path}` again",
        )
    order = {word: place for place, word in enumerate(VERDICT_COLOURS)}
    edited = verdicts[verdicts["n_verified"] > 0]
    ranked = edited.assign(order=edited["verdict"].map(order)).sort_values(["order", "layer", "head"])
    return Verified(
        verdicts=ranked.drop(columns="order").reset_index(drop=True),
        effects=effects,
        run=run,
        prescription=prescribe(artifact.manifest, artifact.heads, verdicts),
    )
