"""References of treated models. They are told apart here because to import the rooms takes seconds."""

from __future__ import annotations

from pathlib import Path

from sinkscope._errors import ModelReferenceError

TREATED = "treated:"
FACTS = "treated.json"
"""What makes a folder a treated model; `sinkscope treat` writes it last."""


def treated_folder(model: object) -> Path | None:
    """The folder in `treated:FOLDER`, or the folder itself where `sinkscope treat` has written one; None for any other
    model.

    **Raises:** `ModelReferenceError` when `treated:` names no such folder.
    """
    if not isinstance(model, str):
        return None
    name = model.removeprefix(TREATED)
    folder = Path(name).expanduser()
    if name and (folder / FACTS).is_file():
        return folder
    if not model.startswith(TREATED):
        return None
    if name and (folder / "checkpoint").is_dir():
        next_step = "go on with its tuning: the command that began it, with the same --out"
    elif name and (folder / "treatment.json").is_file():
        next_step = f"it has a treatment without its model; in Python: sinkscope.treat.load(MODEL, {str(folder)!r})"
    else:
        next_step = "check the path"
    raise ModelReferenceError(
        f"model reference '{model}'", f"treated:FOLDER, the --out of `sinkscope treat`, with {FACTS} in it", next_step
    )
