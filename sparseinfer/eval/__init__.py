"""Measures a model's quality and sparsity on text, beside its dense parent.

Reading order: `windows` (what is scored in which context), `perplexity` (the measurements),
`parent` (finds the dense model to compare with), `evaluate` (all of it), `report` (JSON and
Markdown).
"""

from sparseinfer.eval.evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
