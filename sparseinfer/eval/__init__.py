"""Measures a model's quality and sparsity on text and tasks, beside its dense parent.

Reading order: `windows` (what is scored in which context), `perplexity` (the measurements),
`parent` (finds the dense model to compare with), `held_out` (texts that a model was made on, which
are refused), `comparison` with `interval` (what came of it), `phases` (prompts and generated text
apart), `masked_layer` (single layers with a model's masks), `firing`, `ppl_p` and `layer_passes`
(passes through those), `predictor` (what one finds, loses and costs), `tasks` with `local_tasks`
and `engine_lm` (lm-eval), `provenance` (versions, machine, settings, time), `evaluate` (all of it),
`report_parts`, `caveats` and `report` (what was found as a report of `sparseinfer.report`); `probe`
(one model with one choice of masks after the other, for searches and comparisons).
"""

from sparseinfer.eval.evaluate import Evaluation, evaluate
from sparseinfer.eval.probe import ModelProbe

__all__ = ["Evaluation", "ModelProbe", "evaluate"]
