"""A decode step on a GPU that stops where the host has to compute cold neurons."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparseinfer.kernels.decoder.gpu import GpuDecoder, GpuRows
from sparseinfer.kernels.decoder.gpu_counts import LayerReads
from sparseinfer.kernels.gated_ffn.split import SplitFfn
from sparseinfer.kernels.segments import Steps


def decode_steps(
    decoder: GpuDecoder, ffns: Sequence[SplitFfn], rows: GpuRows
) -> Steps[tuple[Tensor, Tensor]]:
    """What calling the decoder does, piece by piece; returns what that returns.

    Args:
        ffns: of all layers, in place of the decoder's own.
        rows: as many as their exchange takes at most.

    For layers that are all hot this is one piece, with n others it has 2n + 1.
    """
    hidden = decoder.embed(rows)
    added, reads = None, []
    for index, ffn in enumerate(ffns):
        x, used = decoder.before_ffn(index, rows, hidden, added)
        found = yield from ffn.steps(x)
        added = found.y
        reads.append(LayerReads(used, found))
    return decoder.finish(hidden, added, reads)


__all__ = ["decode_steps"]
