"""The context manager that watches a module's own forward and hands out its attention calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from sinkscope.capture._call import AttentionCall
from sinkscope.capture._calls import Calls
from sinkscope.capture._forms import observing
from sinkscope.capture._kernels import PLAIN_KERNELS


@contextmanager
def capture(module: nn.Module, on_call: Callable[[AttentionCall], None] | None = None) -> Iterator[Calls]:
    """Watch every attention call of `module` while its own forward runs.

    Nothing is patched or replaced: a dispatch mode sees the kernels that run, hooks tell which module runs them, the
    C++ fast path of nn.MultiheadAttention is off and compiled modules run uncompiled inside the context. All of it is
    undone on exit, also after an exception.

    **Arguments:**

    - `module`: any PyTorch module.
    - `on_call`: called with each call when its block has finished, or, after `calls.settle()`, as soon as it has run
        and before the model reads its output: then changing `call.out` in place edits the attention output, whatever
        the route. Calls are then not kept. Without it they are
        collected in the list, which holds queries, keys, values and outputs: memory linear in tokens per layer.

    **Returns:**

    A list of [`AttentionCall`][sinkscope.capture.AttentionCall] with `.coverage`.

    **Raises:**

    - `CaptureError`: from `calls.coverage.require()`, when attention was not found or not seen.

    ```python
    with sinkscope.capture(model) as calls:
        model(pixels)
    calls[0].q.shape, calls.coverage.line
    ```
    """
    calls = Calls(module, on_call)
    recorder = calls._recorder
    with ExitStack() as stack:
        for name, inner in _watched(module, calls):
            hooks = calls._hooks[name] = stack.enter_context(ExitStack())
            hooks.callback(inner.register_forward_pre_hook(_entering(calls, name), with_kwargs=True).remove)
            hooks.callback(inner.register_forward_hook(_leaving(calls, name), always_call=True).remove)
        stack.enter_context(PLAIN_KERNELS)
        stack.enter_context(observing(calls))
        stack.callback(recorder.forget)
        with calls._everywhere:
            calls._everywhere.enter_context(recorder)
            yield calls
        calls._finish(lambda call: True)


def _watched(root: nn.Module, calls: Calls) -> Iterator[tuple[str, nn.Module]]:
    for name, module in root.named_modules():
        if name == "" or name in calls._attention or name in calls._blocks or next(module.children(), None) is not None:
            yield name, module


def _entering(calls: Calls, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls._enter(name, args, kwargs)

    return hook


def _leaving(calls: Calls, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        calls._leave(name)

    return hook
