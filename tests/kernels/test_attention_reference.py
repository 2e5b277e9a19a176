"""The plain-torch attention against fp64, and what it leaves in the cache."""

from __future__ import annotations

import pytest
import torch
from test_prefill_attention import CASES, Case

from sparseinfer.kernels.attention.reference import attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numbers", CASES)
def test_values(numbers, dtype):
    torch.manual_seed(0)
    case = Case(*numbers, dtype)
    qkv, keys, values = case.qkv.clone(), case.keys.clone(), case.values.clone()
    attended = attend(qkv, keys, values, case.cos, case.sin, case.start, case.shape)
    wanted, wanted_keys, wanted_values = case.answer()
    assert torch.allclose(attended.double(), wanted, rtol=2e-5, atol=2e-5)
    assert torch.equal(qkv, case.qkv)
    for found, expected in ((keys, wanted_keys), (values, wanted_values)):
        assert torch.equal(found.nan_to_num(nan=-7.0), expected.nan_to_num(nan=-7.0))


def test_misuse():
    case = Case(5, 3, 4, 2, 16, None, torch.float32, spare=0)
    with pytest.raises(ValueError, match="keys has 8 positions; positions 4 to 8 do not fit"):
        attend(case.qkv, case.keys, case.values, case.cos, case.sin, 4, case.shape)
