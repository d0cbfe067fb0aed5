"""One forward pass: arguments, number types, modes, errors; and the hash of the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sinkscope._errors import InputError, ResourceError
from sinkscope.models import Batch, Model, load
from tests.models._tiny import HF


class Recorder(nn.Module):
    """Remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        self.drop = nn.Dropout(0.5)
        self.calls: list[dict[str, Any]] = []

    def forward(self, x: Tensor, mask: Tensor | None = None, extra: Any = None, use_cache: bool = True,
                logits_to_keep: int = 0) -> Tensor:  # fmt: skip
        self.calls.append({"x": x, "mask": mask, "extra": extra, "use_cache": use_cache, "keep": logits_to_keep,
                           "grad": torch.is_grad_enabled(), "training": self.drop.training})  # fmt: skip
        return x * self.scale


def test_inputs_get_the_models_number_type_and_the_pass_needs_no_gradient() -> None:
    module = Recorder()
    model = Model("module:Recorder", module, "unknown")
    x, mask = torch.randn(3, 5), torch.ones(3, 5, dtype=torch.long)
    result = model.run(Batch(0, ("0", "1", "2"), (x,), {"mask": mask, "extra": [x, {"y": x}]}))
    (call,) = module.calls
    assert torch.equal(call["x"], x.bfloat16()) and torch.equal(call["mask"], mask)
    assert call["extra"][0].dtype == call["extra"][1]["y"].dtype == torch.bfloat16
    assert (call["use_cache"], call["keep"], call["grad"]) == (False, 1, False)
    assert torch.equal(result, x.bfloat16())


def test_what_the_batch_says_goes_before() -> None:
    module = Recorder()
    Model("r", module, "unknown").run(Batch(0, ("0",), (torch.ones(1, 5),), {"use_cache": True, "logits_to_keep": 3}))
    assert (module.calls[0]["use_cache"], module.calls[0]["keep"]) == (True, 3)


def test_training_mode_is_as_before_afterwards_also_after_an_error() -> None:
    module = Recorder().train()
    module.drop.eval()
    model = Model("r", module, "unknown")
    model.run(Batch(0, ("0",), (torch.ones(1, 5),)))
    assert (module.calls[0]["training"], module.training, module.drop.training) == (False, True, False)
    module.drop.train()
    with pytest.raises(TypeError):
        model.run(Batch(0, ("0",), ("no tensor",)))
    assert module.drop.training


def test_arguments_the_forward_does_not_take() -> None:
    model = Model("r", Recorder(), "unknown")
    with pytest.raises(InputError) as caught:
        model.run(Batch(0, ("0",), (), {"y": torch.ones(1, 5)}))
    assert caught.value.found.startswith("inputs that Recorder cannot be called with: missing a required argument: 'x'")
    assert caught.value.expected == "its forward's arguments (x, mask, extra, use_cache, logits_to_keep)"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")],
)
def test_running_out_of_memory_says_what_to_lower(error: Exception) -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(ResourceError) as caught:
        Model("m", Hungry(), "unknown").run(Batch(0, ("0", "1"), (torch.ones(2, 5),)))
    assert caught.value.found == "memory ran out in the forward pass of m with a batch of 2"
    assert "--batch-size" in caught.value.next_step


def test_other_errors_of_the_model_pass_through() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match=r"shapes"):
        Model("m", Broken(), "unknown").run(Batch(0, ("0",), (torch.ones(1, 5),)))


def test_a_language_model_makes_the_logits_of_one_position_only() -> None:
    model = load(HF["llama"]())
    ids = torch.randint(3, 101, (2, 7))
    result = model.run(Batch(0, ("0", "1"), (), {"input_ids": ids}))
    assert result.logits.shape == (2, 1, 101) and result.past_key_values is None


def test_an_encoder_decoder_reads_the_text_after_its_start_token() -> None:
    module = HF["t5"]()
    seen: dict[str, Tensor] = {}
    module.decoder.register_forward_pre_hook(lambda part, args, kwargs: seen.update(kwargs), with_kwargs=True)
    ids = torch.tensor([[5, 7, 11], [13, 0, 0]])
    mask = (ids != 0).long()
    load(module).run(Batch(0, ("0", "1"), (), {"input_ids": ids, "attention_mask": mask}))
    assert seen["input_ids"].tolist() == [[0, 5, 7, 11], [0, 13, 0, 0]]
    assert seen["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_the_hash_sees_every_bit_name_shape_and_type() -> None:
    def digest(**tensors: Tensor) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return Model("m", module, "unknown").weights_sha256()

    base = torch.arange(6, dtype=torch.float32)
    same = digest(a=base, b=base[:2])
    assert digest(b=base[:2].clone(), a=base.clone()) == same
    flipped = base.clone()
    flipped.view(torch.int32)[3] ^= 1
    others = [
        digest(a=flipped, b=base[:2]),
        digest(a=base.reshape(2, 3), b=base[:2]),
        digest(a=base, c=base[:2]),
        digest(a=base.view(torch.int32), b=base[:2]),
        digest(a=base.bfloat16(), b=base[:2]),
        digest(a=base),
    ]
    assert len({same, *others}) == 7


def test_parameters_and_dtype() -> None:
    module = nn.Linear(3, 5).half()
    model = Model("m", module, "unknown")
    assert (model.parameters, model.dtype) == (20, "float16")
    assert Model("m", nn.Identity(), "unknown").dtype == "float32"
