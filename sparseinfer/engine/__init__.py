"""Runs a model: token ids in, token ids and logits out. Knows no text.

Reading order: `rope`, `cache`, `counts`, `parts` (work that can be interrupted), `cpu` (the
runner), `torch_pass` and `reference` (the one without native kernels), `device`, `gpu_tiles`,
`gpu_model`, `gpu_step` and `gpu` (the one for GPUs; of models that a GPU does not hold `firing`,
`residency`, the plan, `placing` and `split_layers`, what it makes of the layers), `runner` (which
of them), `settings` and `prompt` (what is checked first), `recall` (what a predictor loses),
`passes` (tokens through a runner, counted), `sampling`, `penalties` and `logprobs`, `generation`
(the decode loop), `scheduling` (many requests at once; a reading order of its own), `batch`,
`rules` (what may change while a model is in memory), `predictor` (one from disk), `model` (the
public `Model`) and `loading` (`load`). Weights come from `sparseinfer.packed`.
"""

from sparseinfer.engine.generation import Generation
from sparseinfer.engine.loading import load
from sparseinfer.engine.model import Model
from sparseinfer.engine.sampling import GREEDY, Sampling

__all__ = ["GREEDY", "Generation", "Model", "Sampling", "load"]
