"""Fine-tuning: trains a dense model until a ReLU-like activation leaves most neurons at rest.

Reading order: `settings` (what can be asked), `request` (of which model); `activations`, `ffn`,
`objective` (what is computed and minimised); `schedule`, `controller`, `strength` (lambda), `rate`;
`token_store`, `packing`, `self_generated`, `text` (what is read); `warm_start/`, `warming` (before
training); `student`, `loop`, `state`, `metrics` (training); `folder`, `runs`, `training`, `result`,
`writing`, `pipeline` (from asking to checkpoints). `docs/finetuning.md` has the ideas. Does not use
the engine, which searches are given as a function.
"""

from sparseinfer.finetune.loop import Budget
from sparseinfer.finetune.pipeline import Finetuning, Result, finetune
from sparseinfer.finetune.request import Request
from sparseinfer.finetune.settings import ObjectiveSettings, RunSettings

__all__ = [
    "Budget",
    "Finetuning",
    "ObjectiveSettings",
    "Request",
    "Result",
    "RunSettings",
    "finetune",
]
