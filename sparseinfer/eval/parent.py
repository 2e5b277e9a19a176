"""Finds the dense model that a converted or packed model came from."""

from __future__ import annotations

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import SparseInferError
from sparseinfer.packed import Packed
from sparseinfer.sources import ResolvedModel, resolve_model


def find_parent(source: Checkpoint | Packed) -> tuple[ResolvedModel | None, str]:
    """The parent named in the conversion record, or None and the reason in one sentence.

    A packed dense model has none; the checkpoint it was packed from stands in.
    """
    if source.record is not None:
        recorded = source.record.parent
    elif isinstance(source, Packed):
        recorded = source.source
    else:
        return None, "this checkpoint was not converted: there is no dense parent to compare with"
    try:
        resolved = resolve_model(recorded.reference, dtype=recorded.requested_dtype)
        parent = Checkpoint.open(resolved.path)
    except SparseInferError as error:
        return None, f"the dense parent {recorded.reference} is not at hand ({error})"
    if parent.ffn_sha256 != recorded.ffn_sha256:
        return None, (
            f"{recorded.reference} has other FFN weights than when it was converted or packed; "
            "give the right one with --parent"
        )
    return resolved, ""
