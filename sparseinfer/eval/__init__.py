"""Measures a model's quality and sparsity on text and tasks, beside its dense parent.

Reading order: `windows` (what is scored in which context), `perplexity` (the measurements),
`parent` (finds the dense model to compare with), `held_out` (texts the model was calibrated on,
which are refused), `comparison` with `interval` (what came of it),
`phases` (prompts and generated text apart), `masked_layer` (single layers with a model's masks),
`firing`, `ppl_p` and `layer_passes` (passes through those), `tasks` with `local_tasks` and
`engine_lm` (lm-eval), `provenance` (versions, machine, settings, time), `evaluate` (all of it),
`report_parts`, `caveats` and `report` (what was found as a report of `sparseinfer.report`); `probe`
(one model with one choice of thresholds after the other, for searches).
"""

from sparseinfer.eval.evaluate import Evaluation, evaluate
from sparseinfer.eval.probe import open_probe

__all__ = ["Evaluation", "evaluate", "open_probe"]
