"""What sets its own starting values by an input of the model."""

from __future__ import annotations

from torch import nn


class Starting(nn.Module):
    """A module that is told when the input that runs is a probe.

    - `observing`: whether it is.
    """

    observing: bool = False

    def settle(self) -> None:
        """Sets starting values from what was observed."""
