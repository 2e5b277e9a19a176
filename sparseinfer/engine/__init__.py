"""Runs a model: token ids in, token ids and logits out. Knows no text.

Reading order: `rope`, `cache`, `counts`, `cpu` (the runner), `reference` (the one without native
kernels), `runner` (which of them), `sampling`, `generation` (the decode loop), `batch`, `model`
(`load` and the public `Model`). Weights come from `sparseinfer.packed`.
"""

from sparseinfer.engine.generation import Generation
from sparseinfer.engine.model import Model, load
from sparseinfer.engine.sampling import GREEDY, Sampling

__all__ = ["GREEDY", "Generation", "Model", "Sampling", "load"]
