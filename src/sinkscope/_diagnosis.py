"""A finished diagnosis, as Python users hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkscope._errors import ArtifactError
from sinkscope.artifact import Artifact, open_artifact
from sinkscope.explain import Prescription, prescribe, summarise

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from sinkscope.models import Model


@dataclass(frozen=True)
class Diagnosis:
    """A finished diagnosis: the artifact and what to do with it. Shows itself in a notebook.

    - `artifact`: its tables and arrays.
    - `origin`: the diagnosis this one was verified from, which may own the folder.
    """

    artifact: Artifact
    origin: Diagnosis | None = field(default=None, repr=False)

    @property
    def path(self) -> Path:
        """The artifact's folder."""
        return self.artifact.path

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What was measured, how, and with which coverage."""
        return self.artifact.manifest

    @property
    def events(self) -> pd.DataFrame:
        """One row per input, layer and head; columns as in the artifact."""
        return self.artifact.events()

    @property
    def heads(self) -> pd.DataFrame:
        """One row per layer and head; columns as in the artifact."""
        return self.artifact.heads

    @property
    def verified(self) -> bool:
        """Whether there are verdicts."""
        return self.artifact.verdicts is not None

    @property
    def verdicts(self) -> pd.DataFrame:
        """One row per head: its verdict, how sure it is, and why; sink heads that were not edited have none.

        **Raises:** `ArtifactError` before `verify`.
        """
        return self._verified(self.artifact.verdicts)

    @property
    def effects(self) -> pd.DataFrame:
        """One row per edited head, edit and measure, with intervals. **Raises:** `ArtifactError` before `verify`."""
        return self._verified(self.artifact.effects)

    def verify(
        self,
        heads: str = "auto",
        inputs: int = 64,
        donors: int = 2,
        freeze_all: bool = False,
        *,
        seed: int = 0,
        batch_size: int = 128,
        device: str = "cpu",
        again: bool = False,
        model: str | nn.Module | Model | None = None,
        data: Any = None,
        trust_remote_code: bool = False,
        on_part: Callable[[int, int], None] | None = None,
        command: str | None = None,
    ) -> Diagnosis:
        """Edit one head at a time, see what changes, and give each sink head a verdict.

        The model and the inputs are those of the diagnosis, loaded again by reference. What was done is kept in the
        folder: a second call goes on where the first stopped, and other heads are added to those that are there.

        **Arguments:**

        - `heads`: `auto` for those of kind `sink`, `all`, or a list such as `0.2,3.11` (layer.head).
        - `inputs`: most inputs per head.
        - `donors`: draws of the edits `donor` and `ordinary` per input.
        - `freeze_all`: later layers keep their attention too, so that only what flows through values counts.
        - `seed`: of donors, controls and bootstrap intervals.
        - `batch_size`: most rows in one edited forward pass; a row is one input under one edit of one head.
        - `device`: where the model runs.
        - `again`: delete the edits that are there and begin anew, which other options than theirs need.
        - `model`, `data`: the model and the inputs anew, as `diagnose` took them, where no reference or path can.
        - `on_part`: called after each part with the number of parts done and of all parts.
        - `command`: what to run to go on; messages name it.

        **Returns:** the diagnosis with verdicts.

        **Raises:** `WeightsError`, `InputError` when the model or the inputs have changed; `NumericsError` when the
        model is not deterministic; `OptionError`, `CaptureError` for heads that do not exist or cannot be seen;
        `ArtifactError` when other edits are there.
        """
        from sinkscope._verify import VerifyOptions, verify

        options = VerifyOptions(heads, inputs, donors, freeze_all, seed, batch_size, device)
        verified = verify(
            self.artifact,
            options,
            again=again,
            model=model,
            data=data,
            trust_remote_code=trust_remote_code,
            on_part=on_part,
            command=command,
        )
        return Diagnosis(verified, self)

    def _verified(self, table: pd.DataFrame | None) -> pd.DataFrame:
        if table is None:
            raise ArtifactError(
                f"{self.path} has no verdicts", "a diagnosis whose heads were edited", f"sinkscope verify {self.path}"
            )
        return table

    def prescription(self) -> Prescription:
        """What to do about the sinks, with the evidence and the source of each advice; prints as text.

        **Raises:** `ArtifactError` before `verify`.
        """
        return prescribe(self.manifest, self.heads, self.verdicts)

    def summary(self) -> str:
        """The coverage line, notes on the model if there are any, and three sentences that sum it up; five once
        heads were edited."""
        sinks = self.artifact.events(["sink", "role", "mass"])
        notes = [f"note: {note}" for note in self.manifest["model"]["notes"]]
        sentences = summarise(self.artifact.manifest, self.heads, sinks)
        return "\n".join([self.manifest["coverage"]["line"], *notes, *sentences])

    def report(self, path: Path | str | None = None) -> Path:
        """Write the offline HTML report, next to the tables unless `path` says otherwise.

        **Raises:** `MissingExtraError` without the `report` extra.
        """
        from sinkscope.report import write_report

        return write_report(self.path, None if path is None else Path(path))

    def _repr_html_(self) -> str:
        from html import escape

        head = "".join(f"<p>{escape(line)}</p>" for line in self.summary().splitlines())
        columns = ["layer", "head", "kind", "event_rate", "role", "nop", "broadcast", "other", "content_share"]
        sinks = self.heads.query("sink_rate > 0").sort_values("event_rate", ascending=False)
        return head + str(sinks[columns].head(10).to_html(index=False, escape=True))


def open_diagnosis(path: Path | str) -> Diagnosis:
    """Open a finished diagnosis from its folder.

    **Raises:** `ArtifactError` when the folder is no artifact, or an unfinished one.
    """
    return Diagnosis(open_artifact(path))
