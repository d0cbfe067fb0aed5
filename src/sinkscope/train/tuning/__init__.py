"""Tuning what treatments have added to a pretrained model, everything else frozen.

```python
import sinkscope
from sinkscope.train.tuning import TuneOptions, tune

treated = sinkscope.treat(model, [HeadNorm()])
tuned = tune(treated, inputs, TuneOptions("distill", steps=100), out=Path("normed"))
tuned.loss_before, tuned.loss_after, tuned.remarks
```
"""

from sinkscope.train.tuning._final_tokens import FinalTokens as FinalTokens, final_tokens as final_tokens
from sinkscope.train.tuning._loop import COLUMNS as COLUMNS, OnStep as OnStep, Step as Step
from sinkscope.train.tuning._options import Objective as Objective, TuneOptions as TuneOptions
from sinkscope.train.tuning._tune import tune as tune
from sinkscope.train.tuning._tuned import Tuned as Tuned
