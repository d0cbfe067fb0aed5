"""The artifact: the folder that holds what a run has found, written part by part, readable without sinkscope."""

from ._artifact import Artifact as Artifact, open_artifact as open_artifact
from ._comparison import (
    COMPARED_HEAD_COLUMNS as COMPARED_HEAD_COLUMNS,
    COMPARED_INPUT_COLUMNS as COMPARED_INPUT_COLUMNS,
    COMPARED_RATES as COMPARED_RATES,
    MEASURE_COLUMNS as MEASURE_COLUMNS,
    ComparisonTables as ComparisonTables,
    read_comparison as read_comparison,
    require_comparison_folder as require_comparison_folder,
    write_comparison as write_comparison,
)
from ._edits import (
    EDIT_COLUMNS as EDIT_COLUMNS,
    EDITS as EDITS,
    done_edits as done_edits,
    read_edits as read_edits,
    write_edits as write_edits,
)
from ._files import replacing as replacing, write_text as write_text
from ._gallery import GALLERY_SIZE as GALLERY_SIZE, GalleryItem as GalleryItem
from ._manifest import Manifest as Manifest, ModelInfo as ModelInfo, build_manifest as build_manifest
from ._run import (
    Run as Run,
    attach_run as attach_run,
    open_run as open_run,
    opened_run as opened_run,
    require_free as require_free,
)
from ._schema import (
    EFFECT_COLUMNS as EFFECT_COLUMNS,
    EVENT_COLUMNS as EVENT_COLUMNS,
    HEAD_EFFECTS as HEAD_EFFECTS,
    MEDIAN_COLUMNS as MEDIAN_COLUMNS,
    ROW_COLUMNS as ROW_COLUMNS,
    SAMPLED_COLUMNS as SAMPLED_COLUMNS,
    SCHEMA_VERSION as SCHEMA_VERSION,
    SHARES as SHARES,
    SINK_MASS as SINK_MASS,
    Column as Column,
    head_columns as head_columns,
    verdict_columns as verdict_columns,
)
from ._vectors import PART_VECTORS as PART_VECTORS
from ._verdicts import (
    with_verdicts as with_verdicts,
    without_verdicts as without_verdicts,
    write_verdicts as write_verdicts,
)
from ._verification import (
    Verification as Verification,
    read_verification as read_verification,
    verification as verification,
)
