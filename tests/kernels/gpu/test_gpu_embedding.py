"""Rows of an embedding in Triton."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DEVICE, gpu_matrix
from matrices import poison

from sparseinfer.kernels.embedding.gpu import GpuEmbedding
from sparseinfer.kernels.embedding.reference import embed

FORMATS = ("fp32", "bf16", "fp16", "int8", "int4")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 33), (16, 130), (2, 1100)])
def test_the_very_values_and_no_other_row(format, rows, columns):
    weight = gpu_matrix(40, columns, format, seed=rows)
    ids = torch.arange(rows, device=DEVICE) * 17 % 40
    ids[-1] = ids[0]
    found = GpuEmbedding(weight)(ids)
    assert torch.equal(found, embed(weight, ids))
    unread = torch.ones(40, dtype=torch.bool, device=DEVICE)
    unread[ids] = False
    assert torch.equal(GpuEmbedding(poison(weight, unread))(ids), found)


def test_no_ids():
    ids = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert GpuEmbedding(gpu_matrix(4, 8, "bf16"))(ids).shape == (0, 8)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(2, dtype=torch.int32), "int64"),
        (torch.zeros(1, 1, dtype=torch.int64), r"ids must be \[B\]"),
        (torch.zeros(1, dtype=torch.int64, device="meta"), "ids are on meta"),
    ],
)
def test_wrong_ids(ids, message):
    ids = ids if ids.is_meta else ids.to(DEVICE)
    with pytest.raises(ValueError, match=message):
        GpuEmbedding(gpu_matrix(4, 8, "bf16"))(ids)
