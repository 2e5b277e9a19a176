"""A whole decode step in a CUDA graph that is replayed for other tokens, positions and caches."""

from __future__ import annotations

import pytest
import torch
from decoder_oracle import text, toy
from gpu_cases import DEVICE
from test_gpu_decoder import SMALL, Batch

from sparseinfer.kernels.decoder.gpu import GpuRows

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs need a GPU")


@pytest.mark.parametrize("rules", [{}, {"top_k": 20}, {"sparse": ("q", "gate")}])
@pytest.mark.parametrize("rows", [1, 4])
def test_replays_are_calls(rows, rules):
    model, ids = toy("bf16", kv_dtype=torch.bfloat16, **rules, **SMALL), text(24, vocabulary=40)
    batches = [Batch(model, [(5 * b + 3 * k) % 22 for b in range(rows)], ids) for k in range(3)]
    decoder = batches[0].decoder()
    given = torch.empty((GpuRows.FIELDS, rows), dtype=torch.int64, device=DEVICE)
    given.copy_(batches[0].fields())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        decoder(GpuRows.of(given))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits, counts = decoder(GpuRows.of(given))
    for batch in batches:
        given.copy_(batch.fields())
        graph.replay()
        found = logits.clone(), counts.clone()
        graph.replay()
        assert torch.equal(logits, found[0])
        assert torch.equal(counts, found[1])
        wanted = decoder(GpuRows.of(given))
        assert torch.equal(logits, wanted[0])
        assert torch.equal(counts, wanted[1])
        assert torch.isfinite(logits).all()
