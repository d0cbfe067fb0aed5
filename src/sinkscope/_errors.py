"""The one family of errors a user can foresee.

Every message has three parts: what was found, what was expected, and the next command or call to try.
The command line prints the message on one line and exits with code 2; Python users catch `SinkError`.
"""

from __future__ import annotations


class SinkError(Exception):
    """Base of every error sinkscope raises on purpose.

    **Arguments:**

    - `found`: what was found, naming the thing (a file, an option, a layer).
    - `expected`: what would have been right.
    - `next_step`: the command or call that gets the user on.
    """

    def __init__(self, found: str, expected: str, next_step: str) -> None:
        self.found = found
        self.expected = expected
        self.next_step = next_step
        super().__init__(f"{found}; expected {expected}; next: {next_step}")

    def __reduce__(self) -> tuple[type[SinkError], tuple[str, str, str]]:
        return type(self), (self.found, self.expected, self.next_step)


class ModelReferenceError(SinkError):
    """A model reference that names nothing, or nothing that can be had here."""


class MissingExtraError(SinkError):
    """A capability whose optional dependency is not installed."""


class WeightsError(SinkError):
    """Weights that are corrupt, of an unsafe format, or not the expected ones."""


class InputError(SinkError):
    """Inputs that are empty, broken, too short, or of the wrong kind for the model."""


class CaptureError(SinkError):
    """Attention that is absent or cannot be captured."""


class NumericsError(SinkError):
    """NaN or infinite values where finite ones are needed; names the layer."""


class OptionError(SinkError):
    """An option, or a combination of options, that cannot be used."""


class ArtifactError(SinkError):
    """A folder that is no artifact, belongs to another run, or is damaged."""


class ResourceError(SinkError):
    """Memory or disk space has run out."""
