"""What the literature offers against or for sinks: each treatment in plain words, with its source and its cautions.

Numbers are those the authors publish in their paper or beside their code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_FESSER = "Fesser, Jacobs, Fel, Keller, Kakade 2026, arXiv:2606.08105"
_RAISES = (
    "Gates can raise broadcast sinks: in the ViT-L of arXiv:2606.08105 they took NOP-like sinks from 0.25 to 0 per "
    "image and broadcast-like ones from 0.09 to 3.80; diagnose and verify again after training."
)
_MOVES = (
    "Registers move sinks rather than remove them: in DINOv2-g with four registers these take nearly all sink mass, "
    "and most of their sinks look like NOPs (arXiv:2606.08105)."
)


@dataclass(frozen=True)
class Treatment:
    """One treatment.

    - `title`: what to do; the number of heads and their names follow.
    - `text`: how it works and why it fits this mechanism.
    - `sources`: where it comes from, and what was found there.
    - `cautions`: what may go wrong.
    """

    title: str
    text: str
    sources: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


TREATMENTS: Mapping[str, Treatment] = {
    "gate": Treatment(
        "Gate",
        "The head parks its attention to stay silent. A sigmoid gate on its output, before the output projection, "
        "lets it be silent without a sink.",
        (
            f"{_FESSER}: with gates the NOP-like sinks of a ViT-L fall from 0.25 to 0 per image.",
            "Qiu et al. 2025, arXiv:2505.06708: gates on the output of the attention, one per head or per element.",
            "Bondarenko et al. 2023, arXiv:2306.12929: gates per head and token, also for encoders such as BERT.",
        ),
        (_RAISES,),
    ),
    "registers": Treatment(
        "Registers for",
        "The sink gathers what this input is about and hands it to every token. Registers, learned tokens without a "
        "place of their own, give that a home, so that no picture or word token has to serve.",
        (
            f"{_FESSER}: with four registers the mIoU of a ViT-L rises from 0.166 to 0.187 on ADE20K and from 0.438 "
            "to 0.499 on VOC12.",
            "Jiang, Dravid, Efros, Gandelsman 2025, arXiv:2506.08010: a register at test time, without training, for "
            "models whose sinks come from a few neurons.",
        ),
        (_MOVES,),
    ),
    "both": Treatment(
        "Gates and registers for",
        "Some heads park their attention to stay silent, others hand out what the input is about. Gates serve the "
        "first, registers the second; either alone leaves the other mechanism where it is.",
        (
            f"{_FESSER}: mIoU of a ViT-L on ADE20K 0.166 untreated, 0.187 with registers, 0.185 with a gate per head, "
            "0.199 with both; on VOC12 0.438, 0.499, 0.476 and 0.524; ImageNet accuracy stays at 69%.",
        ),
        (
            _RAISES + " Its authors bring the 3.80 down to 0.53 by a position-free global pathway with a penalty on "
            "what all tokens receive in common.",
            _MOVES,
        ),
    ),
    "attention bias": Treatment(
        "Attention bias for",
        "The sink writes one constant vector, whatever the input. A learned key and value per head, outside the "
        "tokens, can write it instead.",
        (
            "Sun et al. 2024, arXiv:2402.17762: a key k’ and a value v’ per head join keys and values; ViTs whose "
            "registers are fixed to their mean keep their ImageNet accuracy (81.9, 84.8, 86.3, 87.0 against 81.7, "
            "85.0, 86.2, 87.0 for S, B, L, g).",
        ),
        ("The constant is that of these inputs; inputs of another kind may have another one.",),
    ),
    "learned sink": Treatment(
        "Or, instead of gates, a learned sink for",
        "A learned logit per head joins the softmax and is dropped again: attention that has nowhere to go needs no "
        "token for it. Measured: as for the nop heads above.",
        ("gpt-oss, as in transformers (modular_gpt_oss.py): softmax over the scores and one learned logit per head.",),
        (
            "The softmax changes, so kernels must know it: the gpt-oss of transformers runs without PyTorch’s fused "
            "attention.",
        ),
    ),
    "prune": Treatment(
        "Try to prune",
        "What these heads write does not matter on these inputs.",
        (
            "Sandoval-Segura et al. 2025, arXiv:2504.03889: finds inactive heads, among others by the norm of what "
            "they write, and removes them.",
            "arXiv:2605.09313, on diffusion transformers: high attention mass is no proof of function.",
        ),
        (
            "Verdicts are of one head at a time. Remove the heads together and measure what is lost before relying on "
            "it, also on other kinds of input: a head that is dormant here may be active there.",
        ),
    ),
    "nothing": Treatment("Nothing to do for", ""),
}
"""By name; `nothing` gets its text from what was found."""
