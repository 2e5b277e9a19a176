"""Compares methods on one model, text, tasks and bytes.

Reading order: `contenders` (what can be compared), `targets` (how sparse each is to be), `scores`
(what is kept of a run), `store` (results on disk, so that a run can be resumed), `measure` (runs
the model), `checkpoints` (converted models beside methods), `pipeline` (all of it), `report`.
"""

from sparseinfer.compare.contenders import CONTENDERS
from sparseinfer.compare.pipeline import DEFAULT_METHODS, DEFAULT_SPARSITIES, compare

__all__ = ["CONTENDERS", "DEFAULT_METHODS", "DEFAULT_SPARSITIES", "compare"]
