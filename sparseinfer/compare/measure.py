"""Runs one model over windows of text under many masks, the dense model beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from sparseinfer.checkpoint.layout import no_progress
from sparseinfer.compare.scores import WindowScore, gate_first
from sparseinfer.compare.store import Store
from sparseinfer.convert.masks import Masks
from sparseinfer.engine import Model
from sparseinfer.engine.settings import Phase
from sparseinfer.eval.perplexity import measure
from sparseinfer.eval.probe import use_masks
from sparseinfer.eval.windows import Window


@dataclass(frozen=True)
class Entry:
    """One choice of masks.

    Attributes:
        key: names it in the store.
        masks: None leaves the model's own, as its checkpoint has them, or those of results that
            are all in the store.
        by_neurons: its mask is on the inputs of down, and stands for neurons known in advance.
    """

    key: str
    masks: Masks | None
    by_neurons: bool = False


def measure_entries(
    model: Model,
    dense: Model,
    entries: Sequence[Entry],
    windows: Sequence[Window],
    store: Store,
    tick: Callable[[], None],
) -> Mapping[str, list[WindowScore]]:
    """Key -> scores of all windows, from the store where they are known.

    The dense model runs once for each window, whatever the number of entries; it may be `model`.

    Raises:
        NumericalError: a model computes NaN.
        OutputError: the store cannot be written.
    """
    found: dict[str, list[WindowScore]] = {entry.key: [] for entry in entries}
    for index, window in enumerate(windows):
        replay: _Replay | None = None
        for entry in entries:
            key = f"{entry.key} window {index}"
            known = store.get(key)
            if known is None:
                if replay is None:
                    replay = _Replay(dense, window)
                score = _score(model, entry, window, replay)
                store.put(key, score.to_json())
            else:
                score = WindowScore.from_json(known)
            found[entry.key].append(score)
            tick()
    return found


def _score(model: Model, entry: Entry, window: Window, dense: _Replay) -> WindowScore:
    if entry.masks is not None:
        use_masks(model, entry.masks)
    model.reset_sparsity()
    (totals,) = measure(model, dense, [window], by="prefill", progress=no_progress)
    counts = model.sparsity("prefill")
    return WindowScore(totals, gate_first(counts) if entry.by_neurons else counts)


class _Replay:
    """The dense model's logits of one window, to be read again and again."""

    def __init__(self, dense: Model, window: Window) -> None:
        use_masks(dense, Masks())
        self._tokens = len(window.ids) - 1
        self._chunks = list(dense.logit_chunks(window.ids[:-1]))

    def logit_chunks(
        self,
        ids: Sequence[int],
        *,
        by: Phase = "prefill",  # noqa: ARG002 - a `Scorer`, which is told how
    ) -> Iterator[torch.Tensor]:
        assert len(ids) == self._tokens, "another window"
        return iter(self._chunks)
