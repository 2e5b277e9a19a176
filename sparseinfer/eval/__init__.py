"""Measures a model's quality and sparsity on text, beside its dense parent.

Reading order: `windows` (what is scored in which context), `perplexity` (the measurements),
`parent` (finds the dense model to compare with), `evaluate` (all of it), `report` (JSON and
Markdown), `probe` (one model with one choice of thresholds after the other, for searches).
"""

from sparseinfer.eval.evaluate import Evaluation, evaluate
from sparseinfer.eval.probe import open_probe

__all__ = ["Evaluation", "evaluate", "open_probe"]
