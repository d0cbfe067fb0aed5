"""All families by name."""

from __future__ import annotations

from tests.families._custom import CUSTOM
from tests.families._family import Family
from tests.families._hf_text import HF_TEXT
from tests.families._hf_vision import HF_VISION
from tests.families._open_clip import OPEN_CLIP
from tests.families._timm import TIMM
from tests.families._torch import TORCH

FAMILIES: dict[str, Family] = {
    family.name: family for family in (*HF_VISION, *HF_TEXT, *TIMM, *OPEN_CLIP, *TORCH, *CUSTOM)
}
