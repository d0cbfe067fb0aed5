"""Arguments and options that several commands take, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Images = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Pictures: a folder, searched with its subfolders, or one file.")
]
Text = Annotated[Path | None, typer.Option(metavar="FILE", help="A text file, cut into windows.")]
Dataset = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A parquet file or a folder of them, or NAME[:SPLIT] of a hub dataset."),
]
Size = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Side of the square pictures; the model's own by default.")
]
Length = Annotated[
    int | None,
    typer.Option(metavar="TOKENS", help="Length of the text windows; by default the model's, at most 128."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out and name inputs that cannot be read, instead of stopping.")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="Where the model runs, such as cpu or cuda:0.")]
DType = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="float64, float32, bfloat16 or float16; the checkpoint's own by default."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
