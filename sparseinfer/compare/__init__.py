"""Compares methods on one model, text, tasks and bytes.

Reading order: `contenders` (what can be compared), `targets` (how sparse each is to be), `scores`
(what is kept of a run), `store` (results on disk, so that a run can be resumed), `measure` (runs
the model), `checkpoints` (converted models beside methods), `compare` (all of it), `report`.
"""

from sparseinfer.compare.compare import DEFAULT_METHODS, DEFAULT_SPARSITIES, compare
from sparseinfer.compare.contenders import CONTENDERS

__all__ = ["CONTENDERS", "DEFAULT_METHODS", "DEFAULT_SPARSITIES", "compare"]
