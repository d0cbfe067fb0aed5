"""The glossary, and what to cite."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("sink", "The key token that receives the largest mass in one head on one input."),
    ("mass", "Mean attention weight a key receives from the valid queries that may see it."),
    ("row", "One input, layer and head: the unit everything here is counted in."),
    ("event", "A row in which the sink fulfils the rule named on this page."),
    ("sink row", "A row whose sink has mass ≥ 0.3, whatever the rule."),
    ("routed", "Share of the sink’s queries that give it a weight of 0.5 or more."),
    ("min_mass", "Smallest weight on the sink over its queries."),
    ("value_ratio", "Norm of the sink’s value vector over the mean norm of the other tokens’ values."),
    (
        "update_ratio",
        "The same after the output projection: u = g · W_O v, with g the LayerScale vector. What a token adds to the "
        "residual stream when attended to.",
    ),
    (
        "stable_rank",
        "Squared Frobenius norm of the head’s write over its squared largest singular value; 1 means all tokens "
        "receive the same vector up to a factor.",
    ),
    ("nop", "An event whose sink writes next to nothing: the head parks its attention there."),
    ("broadcast", "An event whose sink writes as much as an ordinary token, and the same to all tokens."),
    (
        "energy",
        "Mean squared norm of the sink’s write, over inputs with mass ≥ 0.3, relative to that of ordinary tokens.",
    ),
    ("constant", "The part of the energy that is the same vector on every input (may dip below 0: it is unbiased)."),
    ("content", "Energy minus constant: what the sink says about this input. content_share is content over energy."),
    ("silent", "What is missing to the energy of an ordinary token: 1 − energy, at least 0."),
    ("diagonal", "Mean weight of tokens on themselves."),
    ("entropy", "Mean entropy of the rows of weights; entropy_share is relative to the logarithm of the visible keys."),
    ("hidden_norm", "L2 norm of the block’s input, before any normalisation."),
    ("virtual_mass", "What is missing from a row of weights to 1: attention that learned or virtual sinks take."),
    ("role", "What a token is: cls, register, patch, distill, bos, sep, pad, mask, special, punctuation or word."),
    (
        "kind",
        "What a head is: sink; uniform (attends evenly), diagonal (tokens attend to themselves) and dead (every write "
        "tiny) look alike on some measures but are no sinks; none of these otherwise.",
    ),
)

VERDICT_GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "verdict",
        "What edits of one head at a time say its sink does: nop (the head stays silent by parking here), broadcast "
        "(the sink carries this input’s content), bias (it writes one constant vector, whatever the input), inert "
        "(mass without function), undecided. Classes under the rule are signatures, a verdict is causal.",
    ),
    (
        "edit",
        "What replaces the sink’s value in one head, its attention kept: zero (nothing), mean (the head’s mean over "
        "other inputs), donor (another input’s sink value), ordinary (a value that is no sink’s), random (a random "
        "direction of the same norm); redirect instead gives the attention to the other tokens; noop changes nothing; "
        "other_head zeroes the same token in another head of the layer.",
    ),
    ("control", "Zeroing other keys, drawn at random, of up to the sink’s mass: what any key of that mass would do."),
    (
        "effect",
        "Root mean square of the change over that of what was there: of the head’s write (write), of the last block’s "
        "output (final) or of that after the last norm (final_norm), over all tokens other than the sink.",
    ),
    ("common", "Share of the change that is the same for all tokens that see the sink."),
    (
        "donor_cosine",
        "Cosine of what a donor’s sink value does with what it should do if the sink’s value is what counts.",
    ),
    ("confidence", "Share of bootstrap resamples of the inputs that give the same word."),
    ("halves agree", "Whether both halves of the inputs, judged alone, give the same word; from 16 inputs on."),
)

BIBTEX = """@article{{fesser2026sinks,
  title   = {{A Unifying View of Attention Sinks: Two Algorithms, Two Solutions}},
  author  = {{Fesser and Jacobs and Fel and Keller and Kakade}},
  journal = {{arXiv preprint arXiv:2606.08105}},
  year    = {{2026}},
}}

@software{{sinkscope,
  title   = {{sinkscope: find and explain attention sinks in any transformer}},
  author  = {{{{The sinkscope authors}}}},
  year    = {{2026}},
  version = {{{version}}},
}}
"""
"""What to cite: the paper of the default rule, whose classes the figures draw, and the software."""
