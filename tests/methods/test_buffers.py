"""What modules say of their buffers is true: a skipped step is undone by it."""

import pytest
import torch
from test_recomputing import CASES, build
from torch import Tensor

from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.buffers import buffers_change


@pytest.mark.parametrize("case", CASES)
def test_buffers_change_when_their_module_says_they_do(case: str) -> None:
    method, batch = build(case, recompute=False)
    if case.startswith("pretrain/"):
        method = Anchor(method, 0.01)

    def values(when: str) -> list[Tensor]:
        modules = [module for module in method.modules() if buffers_change(module) == when]
        return [buffer.clone() for module in modules for buffer in module.buffers(recurse=False)]

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    constant, later = values("never"), values("after_step")
    method.train()
    method(batch, 0.5)
    assert same(constant, values("never")) and same(later, values("after_step"))
    method.after_step(0.5)
    assert same(constant, values("never"))
    assert bool(constant) == case.startswith("pretrain/")
    with_memory = ("pretrain/moco", "pretrain/densecl", "pretrain/distill", "classify/self_tuning", "segment/clmb")
    assert bool(later) == case.startswith(with_memory)
