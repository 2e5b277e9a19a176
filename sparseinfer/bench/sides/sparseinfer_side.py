"""Our own engine as a side: dense or with thresholds, on the same weights in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sparseinfer.bench.settings import SKETCH_BITS
from sparseinfer.bench.sides.choosers import chooser_microseconds
from sparseinfer.bench.sides.side import DecodeRun
from sparseinfer.bench.state_file import Content, read_state
from sparseinfer.bench.states import Layout
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine import Model
from sparseinfer.engine.torch_threads import torch_threads
from sparseinfer.kernels.bandwidth import read_bandwidth
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.isa import choose_isa
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import row_bytes
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.packed import open_model
from sparseinfer.sparsity import CandidateReads, SparsityCounts, bytes_per_token, sparsities
from sparseinfer.version import __version__

_BANDWIDTH_BYTES = 1 << 28


class SparseInferSide:
    """A model in our engine.

    Args:
        model: checkpoint folder or packed artifact.
        weights: auto | bf16 | int8 | int4 | fp32.
        threads: of the kernels.
        huge_pages: of a packed artifact.
        layout: how the weights of a checkpoint are held: by input for thresholds on inputs of all
            projections, sketched for thresholds on estimates of a sketch; by default without one,
            whatever the model's own rules are.
        predictor: folder of one that fits the model.

    Raises:
        SparseInferError: whatever `engine.Model` refuses.
    """

    def __init__(
        self,
        model: str,
        *,
        weights: str,
        threads: int,
        huge_pages: bool = False,
        layout: Layout = "by default",
        predictor: str | None = None,
    ) -> None:
        source = open_model(model)
        if isinstance(source, Checkpoint) and layout != "sketched" and _has_sketch(source):
            source = replace(source, record=None)
        self._model = Model(
            source,
            weights=weights,
            threads=threads,
            huge_pages=huge_pages,
            by_input=PROJECTIONS if layout == "by input" else (),
            predictor=predictor,
        )
        self._predictors = self._model.predictors
        if layout == "sketched" and self._model.sketch_bits is None:
            self._model.set_sketch(SKETCH_BITS)
        self._phi = self._model.config.phi
        self._files: dict[str, Content] = {}
        self._own = [threshold.clone() for threshold in self._model.thresholds]
        self._own_inputs = self._model.input_thresholds
        self._own_top_k = self._model.top_k

    def describe(self) -> dict[str, Any]:
        formats = self._model.formats
        layer_bits = self._bits(formats.layers)
        head_bits = self._bits(formats.head)
        return {
            "engine": "sparseinfer",
            "version": f"sparseinfer {__version__}, torch {torch.__version__}",
            "weights": self._model.weight_type,
            "isa": choose_isa(),
            "threads": self._model.threads,
            "kv_cache": formats.kv,
            "bits": {
                "ffn": layer_bits,
                "attention": layer_bits,
                "embedding": head_bits,
                "lm_head": head_bits,
            },
            "types": {
                "ffn": formats.layers,
                "attention": formats.layers,
                "embedding": formats.head,
                "lm_head": formats.head,
            },
        }

    def set_thresholds(
        self,
        layers: Sequence[float] | None,
        inputs: Mapping[str, Sequence[float]] | None = None,
        file: str | None = None,
        activation: str | None = None,
        predictor: bool = False,
    ) -> None:
        """Decides what rests.

        Args:
            layers: one threshold for all neurons of each layer; None: all rules that the model came
                with.
            inputs: projection -> one threshold for all its inputs in each layer; None: none.
            file: of `state_file`, in place of both.
            activation: of the gate; None: the model's own.
            predictor: find neurons by the one that the model was given.
        """
        self._activate(activation or self._phi)
        if file is not None:
            content = self._content(file)
            self._set(content.thresholds, {}, None, content.predictors)
            return
        if layers is None:
            predictors = self._predictors if predictor else None
            self._set(self._own, self._own_inputs, self._own_top_k, predictors)
            return
        config = self._model.config

        def same(values: Sequence[float], size: int) -> list[torch.Tensor]:
            return [torch.full((size,), value) for value in values]

        thresholds = {
            name: same(values, config.inputs_of(name)) for name, values in (inputs or {}).items()
        }
        self._set(same(layers, config.intermediate_size), thresholds, None)

    def _set(
        self,
        layers: Sequence[torch.Tensor],
        inputs: Mapping[str, Sequence[torch.Tensor]],
        top_k: int | None,
        predictors: Sequence[LowRank | SignBits] | None = None,
    ) -> None:
        model = self._model
        if model.predictors is not None:
            model.set_predictors(None)  # thresholds are theirs
        model.set_thresholds(layers)
        if inputs or model.input_thresholds:
            model.set_input_thresholds(inputs)
        if top_k != model.top_k:
            model.set_top_k(top_k)
        if predictors is not None:
            model.set_predictors(predictors)

    def _content(self, file: str) -> Content:
        if file not in self._files:
            self._files[file] = read_state(Path(file))
        return self._files[file]

    def _activate(self, phi: str) -> None:
        """Computes another activation of the gate: no rule of any model asks for that, so `Model`
        has no method for it."""
        model = self._model
        weights = model._weights
        if weights.layers[0].ffn.phi == phi:
            return
        layers = [replace(one, ffn=replace(one.ffn, phi=phi)) for one in weights.layers]
        model._use(replace(weights, layers=tuple(layers)))

    def set_dense(self) -> None:
        """Thresholds of 0: every neuron whose activation is not 0 is computed."""
        self.set_thresholds([0.0] * self._model.config.num_layers)

    def decode(self, prompts: Sequence[Sequence[int]], steps: int) -> DecodeRun:
        if len(prompts) > 1:
            return self._decode_batch(prompts, steps)
        generation = self._model.generate(prompts[0], max_tokens=steps + 1, stop_ids=())
        ids = list(generation)
        counts = generation.sparsity
        return DecodeRun(
            generation.decode_seconds,
            steps,
            [ids],
            list(counts.up_rows),
            list(counts.down_rows),
            {name: list(used) for name, used in counts.inputs.items()},
            None if counts.gate_rows is None else list(counts.gate_rows),
            None if counts.reads is None else asdict(counts.reads),
        )

    def _decode_batch(self, prompts: Sequence[Sequence[int]], steps: int) -> DecodeRun:
        # `Model.generate` is of one sequence; the runner under it steps several at once.
        runner = self._model._runner
        caches = [runner.new_cache() for _ in prompts]
        rows = torch.zeros(self._model.config.num_layers, 2, dtype=torch.int64)
        with torch.inference_mode(), torch_threads(1):
            newest = [
                int(runner.forward(torch.tensor(list(ids)), cache)[0].argmax())
                for ids, cache in zip(prompts, caches, strict=True)
            ]
            columns = [newest]
            began = time.perf_counter()
            for _ in range(steps):
                logits, counts = runner.step(newest, caches)
                rows += counts.sum(1)[:, :2]
                newest = logits.argmax(1).tolist()
                columns.append(newest)
            seconds = time.perf_counter() - began
        ids = [list(sequence) for sequence in zip(*columns, strict=True)]
        return DecodeRun(seconds, steps, ids, rows[:, 0].tolist(), rows[:, 1].tolist())

    def prefill(self, ids: Sequence[int]) -> float:
        generation = self._model.generate(ids, max_tokens=1, stop_ids=())
        list(generation)
        return generation.prefill_seconds

    def score(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """Negative log-likelihood per token, in nats, of each window after its first token."""
        return [float(-self._model.score(window).mean()) for window in windows]

    def chooser_microseconds(self, runs: int) -> list[float]:
        """Of the predictor or sketch that is set, see `choosers`."""
        layers = [layer.ffn for layer in self._model._weights.layers]
        with torch.inference_mode(), torch_threads(1):
            return chooser_microseconds(layers, CpuPool(self._model.threads), runs)

    def bandwidth(self) -> float:
        """GB/s at which the kernels' own threads read a buffer that no cache holds."""
        return read_bandwidth(CpuPool(self._model.threads), _BANDWIDTH_BYTES)

    def account(
        self,
        up_rows: Sequence[int],
        down_rows: Sequence[int],
        tokens: int,
        context: float,
        inputs: Mapping[str, Sequence[int]] | None = None,
        gate_rows: Sequence[int] | None = None,
        reads: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Bytes per token and the three sparsities of rows counted over `tokens` tokens.

        Args:
            inputs, gate_rows, reads: as in `DecodeRun`.
            context: positions attended to, on average.
        """
        config, formats = self._model.config, self._model.formats
        used = {name: tuple(counted) for name, counted in (inputs or {}).items()}
        gates = None if gate_rows is None else tuple(gate_rows)
        chosen = None
        if reads is not None:
            chosen = CandidateReads(**{**reads, "chooser": tuple(reads["chooser"])})
        counts = SparsityCounts(tokens, tuple(up_rows), tuple(down_rows), used, gates, chosen)
        seen = tokens * config.intermediate_size
        read = bytes_per_token(
            config,
            formats,
            [rows / seen for rows in up_rows],
            [rows / seen for rows in down_rows],
            inputs=counts.input_density(config),
            context=round(context),
            gate_density=None if gates is None else [rows / seen for rows in gates],
            reads=chosen,
        )
        return {
            "weight_bytes": read.model_read,
            "kv_bytes": read.kv,
            "parts": dict(read.parts),
            "sparsities": asdict(sparsities(config, formats, counts)),
        }

    def _bits(self, format: Any) -> float:
        hidden = self._model.config.hidden_size
        return 8 * row_bytes(format, hidden) / hidden


def _has_sketch(source: Checkpoint) -> bool:
    return source.record is not None and source.record.sketch_bits is not None
