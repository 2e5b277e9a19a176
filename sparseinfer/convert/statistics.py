"""What calibration learns of one layer: its activations on sampled tokens, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparseinfer.config import ModelConfig
from sparseinfer.convert.block import Block
from sparseinfer.convert.curve import GRID, OutputError, Scores
from sparseinfer.convert.estimates import Estimates
from sparseinfer.convert.signal import Signal
from sparseinfer.convert.some_rows import SomeRows
from sparseinfer.kernels.gated_ffn.activations import activation
from sparseinfer.layerwise import MODULES, LayerwiseModel, module_estimator

INPUT_OF = {"q": "attention", "k": "attention", "v": "attention", "o": "o",
            "gate": "ffn", "up": "ffn", "down": "down"}  # fmt: skip
"""Projection -> the vector it reads: q, k and v share one, and so do gate and up."""

_READ_BY = {"attention": "q", "o": "o", "ffn": "gate", "down": "down"}
_ERROR_TOKENS = 128
"""Tokens that output errors are measured on."""


class LayerStatistics:
    """One layer over all calibration tokens, in memory that does not grow with them.

    Attributes:
        gate: sampled |phi(x W_gate)|.
        inputs: sampled magnitudes of what projections read, by the values of `INPUT_OF`.
        estimates: by the bits of a sketch, what it estimates of neurons.
        block: the layer itself on some tokens. It and `column_norm` may be used until the next
            layer is asked for.
    """

    def __init__(
        self,
        config: ModelConfig,
        model: LayerwiseModel,
        tokens: int,
        phi: str,
        seed: int,
        sketches: Collection[int] = (),
    ) -> None:
        """
        Args:
            phi: activation of the gate.
            sketches: bits of the sketches whose estimates are wanted.
        """
        neurons = config.intermediate_size
        self._phi = phi
        self._layer = model.layer
        self.gate = Signal(tokens, neurons, seed)
        self.inputs: Mapping[str, Signal] = {
            source: Signal(tokens, config.inputs_of(name), seed)
            for source, name in _READ_BY.items()
        }
        self.block = Block(model)
        self._rows = 0
        self._sum_abs = torch.zeros(neurons, dtype=torch.float64)
        self._sum_square = torch.zeros(neurons, dtype=torch.float64)
        self._every = max(1, tokens // _ERROR_TOKENS)
        self._some_gates = SomeRows(self._every)
        self._some_outputs = SomeRows(self._every)
        gate, up = (self._layer.get_submodule(MODULES[name]) for name in ("gate", "up"))
        self.estimates: Mapping[int, Estimates] = {
            bits: Estimates(
                module_estimator(gate, up, bits, phi=phi, psi="id"),
                Signal(tokens, neurons, seed),
                SomeRows(self._every),
            )
            for bits in sketches
        }

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Collects from the layer while the block lasts."""
        module = {name: self._layer.get_submodule(path) for name, path in MODULES.items()}
        hooks = [
            self._layer.register_forward_pre_hook(self.block.keep_input, with_kwargs=True),
            module["gate"].register_forward_hook(self._add_gate),
            module["up"].register_forward_hook(self._add_up),
            module["down"].register_forward_pre_hook(self._add_output),
        ]
        hooks += [
            module[name].register_forward_pre_hook(_Adder(self.inputs[source]))
            for source, name in _READ_BY.items()
        ]
        hooks += [
            module["gate"].register_forward_pre_hook(estimates.add)
            for estimates in self.estimates.values()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def finite(self) -> bool:
        """Whether all activations are."""
        return (
            self.gate.finite
            and all(signal.finite for signal in self.inputs.values())
            and all(one.signal.finite for one in self.estimates.values())
            and bool(torch.isfinite(self._sum_square).all())
        )

    @property
    def neurons(self) -> int:
        """I."""
        return len(self._sum_abs)

    @property
    def up_mean_abs(self) -> Tensor:
        """E|u_i| fp32 [I], u = x W_up, over all tokens."""
        return (self._sum_abs / self._rows).float()

    @property
    def up_root_mean_square(self) -> Tensor:
        """sqrt(E[u_i^2]) fp32 [I], over all tokens."""
        return (self._sum_square / self._rows).sqrt().float()

    def column_norm(self, projection: str) -> Tensor:
        """norm(W[:, j]) fp32 [inputs] of a projection's weights."""
        return self._weight(projection).norm(dim=0)

    def weight_share(self) -> dict[str, float]:
        """Projection -> its share of the weights of all seven, in [0, 1]."""
        sizes = {name: self._weight(name).numel() for name in MODULES}
        return {name: size / sum(sizes.values()) for name, size in sizes.items()}

    def ffn_errors(self, scores: Scores) -> OutputError:
        """CETT by sparsity: norm(sum of dropped neurons' outputs) / norm(FFN output), the mean over
        some tokens (Sparsing Law, 2411.02335), where neurons are dropped by scores of |a|."""
        magnitudes = self._some_gates.rows()
        return self._cett(lambda s: magnitudes < scores.threshold(s))

    def output_errors(self, scores: Scores) -> OutputError:
        """As `ffn_errors`, where neurons are dropped by scores of |h|."""
        magnitudes = self._some_outputs.rows().abs()
        return self._cett(lambda s: magnitudes < scores.threshold(s))

    def sketch_errors(self, estimates: Estimates, scores: Scores) -> OutputError:
        """As `ffn_errors`, where neurons are dropped by scores of what a sketch estimates."""
        magnitudes = estimates.some.rows()
        return self._cett(lambda s: magnitudes < scores.threshold(s))

    def top_k_errors(self, kept: Callable[[float], int]) -> OutputError:
        """As `ffn_errors`, where a token keeps the so many largest |a|.

        Args:
            kept: sparsity -> how many.
        """
        order = self._some_gates.rows().sort(dim=1, descending=True).indices
        everything = torch.ones_like(order, dtype=torch.bool)
        return self._cett(lambda s: everything.scatter(1, order[:, : kept(s)], False))

    def _cett(self, dropped: Callable[[float], Tensor]) -> OutputError:
        """
        Args:
            dropped: sparsity -> bool [tokens, I].
        """
        outputs, down = self._some_outputs.rows(), self._weight("down")
        whole = (outputs @ down.T).norm(dim=1).clamp_min(1e-20)
        lost = (outputs.where(dropped(s), 0) @ down.T for s in GRID)
        return OutputError.measured([float((one.norm(dim=1) / whole).mean()) for one in lost])

    def _weight(self, projection: str) -> Tensor:
        return self._layer.get_submodule(MODULES[projection]).get_parameter("weight").detach()

    def _add_gate(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        magnitudes = activation(self._phi, _flat(output)).abs()
        self.gate.add(magnitudes)
        self._some_gates.add(magnitudes)

    def _add_up(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        rows = _flat(output).double()
        self._sum_abs += rows.abs().sum(0)
        self._sum_square += rows.square().sum(0)
        self._rows += len(rows)

    def _add_output(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._some_outputs.add(_flat(inputs[0]))


class _Adder:
    """Forward pre-hook that adds a module's input to a signal."""

    def __init__(self, signal: Signal) -> None:
        self._signal = signal

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._signal.add(_flat(inputs[0]))


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
