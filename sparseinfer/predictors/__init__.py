"""Predictors guess which neurons fire before any row of the gate is read.

The rule's threshold still applies to what a predictor lets through, so it can lose neurons and
never adds noise.

Reading order: `rules` (which models can have one), `binding` (what ties it to a model), `sample`
(token windows of texts), `observe` (FFN inputs and true masks of a model that runs on them),
`capture_folder` and `capturing` (the same on disk), `ffn` (one layer's weights), `metrics` (how
good guesses are), `held_out` (on which tokens), `threshold` (recall that is asked for), `reduce`
(low-rank maps, and a guess), `fit` (training), `rank` (how large), `lowrank_layer` and `sign_layer`
(one layer, from rows to predictor), `records` (what is written down), `artifact` (the files; all
that an engine needs), `subject` (model and text of a run), `rows` (a folder's, or the model's while
it runs), `work` (finished layers of a run), `disk` (room for it) and `training` (all layers).

    from sparseinfer.predictors import capture, train, load_predictor

Names are imported on first use: loading a predictor needs none of what trains it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparseinfer.predictors.artifact import Predictor, load_predictor
    from sparseinfer.predictors.capturing import capture
    from sparseinfer.predictors.training import train

_HOMES = {
    "Predictor": "artifact",
    "capture": "capturing",
    "load_predictor": "artifact",
    "train": "training",
}

__all__ = ["Predictor", "capture", "load_predictor", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparseinfer.predictors' has no attribute {name!r}")
    return getattr(import_module(f"sparseinfer.predictors.{_HOMES[name]}"), name)
