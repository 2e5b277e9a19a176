"""Runs a checkpoint: token ids in, token ids and logits out. Knows no text.

Reading order: `weights` (tensors ready for the kernels), `rope`, `cache`, `cpu` (the runner),
`sampling`, `generation` (the decode loop), `model` (`load` and the public `Model`).
"""

from sparseinfer.engine.generation import Generation
from sparseinfer.engine.model import Model, load
from sparseinfer.engine.sampling import GREEDY, Sampling

__all__ = ["GREEDY", "Generation", "Model", "Sampling", "load"]
