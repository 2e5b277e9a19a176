"""What a model computes besides its weights, and how that is changed while it is in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.settings import is_count
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.sign import SignBits
from sparseinfer.packed import Weights


class ModelRules(ABC):
    """Thresholds, top-k, sketch and predictors of a model.

    A change that is refused changes nothing. What computes the model is told of every other one.
    """

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config: ModelConfig = config
        self._weights = weights
        self._thresholds = [layer.ffn.threshold for layer in weights.layers]

    @abstractmethod
    def _use(self, weights: Weights) -> None:
        """Goes on with other weights; counts of `sparsity` start anew."""

    @property
    def thresholds(self) -> list[torch.Tensor]:
        """One fp32 [I] per layer, on |phi(x W_gate)|: the memory that the kernels read. Change them
        through `set_thresholds`, which checks them."""
        return list(self._thresholds)

    def set_thresholds(self, thresholds: Sequence[torch.Tensor]) -> None:
        """Replaces the thresholds of all layers; the next token is computed with them.

        Args:
            thresholds: one [I] per layer, each value at least 0; inf switches a neuron off.

        Raises:
            ConfigError: another number of layers, another shape, a negative or NaN value, or
                predictors, which were made for the thresholds there are. Nothing is changed then.
        """
        if self.predictors is not None:
            raise ConfigError(
                "the model's predictors were made for the thresholds that it has: "
                "set_predictors(None) first"
            )
        self._check_layers("thresholds", thresholds)
        checked = _checked_thresholds(thresholds, self.config.intermediate_size, "the threshold")
        for own, one in zip(self._thresholds, checked, strict=True):
            own.copy_(one)

    @property
    def input_thresholds(self) -> dict[str, list[torch.Tensor]]:
        """Projection (q, k, v, o, gate, up, down) -> one fp32 [inputs] per layer, for those that
        have thresholds on their inputs. Change them through `set_input_thresholds`."""
        return self._weights.input_thresholds

    def set_input_thresholds(self, thresholds: Mapping[str, Sequence[torch.Tensor]]) -> None:
        """Replaces the thresholds on inputs of projections; those left out have none from then on.

        An input x_j counts where |x_j| >= its threshold and x_j is not 0, else it is taken as 0.
        The inputs of `down` are the neurons' outputs. The next token is computed with them; counts
        of `sparsity` start anew.

        Args:
            thresholds: projection -> one [inputs] per layer, each value at least 0; inf switches an
                input off.

        Raises:
            ConfigError: an unknown projection, another number of layers, another shape, a negative
                or NaN value, or thresholds that do not go with a sketch or predictor. Nothing is
                changed then.
        """
        checked = {}
        for name, layers in thresholds.items():
            check_projection(name)
            self._check_layers(f"thresholds of {name}", layers)
            checked[name] = [
                one.contiguous().clone()
                for one in _checked_thresholds(
                    layers, self.config.inputs_of(name), f"the {name} threshold"
                )
            ]
        self._change("thresholds on inputs", lambda: self._weights.with_input_thresholds(checked))

    @property
    def top_k(self) -> int | None:
        """Most neurons that a token keeps in a layer; None: all that reach their threshold."""
        return self._weights.top_k

    def set_top_k(self, k: int | None) -> None:
        """Keeps, of the neurons that reach their threshold, the k of largest activation magnitude
        for each token. The next token is computed so; counts of `sparsity` start anew.

        Args:
            k: from 1 to the intermediate size; None keeps all.

        Raises:
            ConfigError: another k, or a sketch or predictor, which top-k does not go with. Nothing
                is changed then.
        """
        most = self.config.intermediate_size
        if k is not None and not (is_count(k) and k <= most):
            raise ConfigError(f"top_k {k!r} is not a whole number from 1 to {most}")
        self._change(f"top_k {k}", lambda: self._weights.with_top_k(k))

    @property
    def sketch_bits(self) -> int | None:
        """Bits of the sketch that decides which neurons are computed; None: their gates decide."""
        return self._weights.sketch_bits

    def set_sketch(self, bits: int | None) -> None:
        """Makes low-bit copies of gate and up, and lets what they estimate of each neuron's output
        decide: thresholds are then on |phi(g) psi(u)| as the sketch has it. The next token is
        computed so; counts of `sparsity` start anew.

        Args:
            bits: 2, 3 or 4 of a weight; None goes back to gates. int8 weights are put in two
                planes, whose high one is the sketch (4 bits).

        Raises:
            ConfigError: bits that the weights cannot be sketched in, or rules of the model that do
                not go with a sketch. Nothing is changed then.
        """
        if bits == self.sketch_bits:
            return
        self._change(f"sketch {bits}", lambda: self._weights.with_sketch(bits))

    def check_dense(self) -> None:
        """Whether the model can run without leaving neurons out.

        Raises:
            UnsupportedError: its activations are 0 by themselves.
        """
        if self.config.phi != "silu" or self.config.psi != "id":
            raise UnsupportedError(
                f"the model's activation ({self.config.phi}) makes its neurons rest by "
                "itself: its sparsity cannot be switched off"
            )

    @property
    def predictors(self) -> list[LowRank | SignBits] | None:
        """What lets neurons through before their gates are read, one per layer, or None."""
        found = [layer.ffn.predictor for layer in self._weights.layers]
        return [one for one in found if one is not None] or None

    def set_predictors(self, predictors: Sequence[LowRank | SignBits] | None) -> None:
        """Considers only the neurons that a predictor lets through, and reads gates of no others.
        The next token is computed so; counts of `sparsity` start anew.

        Args:
            predictors: one per layer, which fit its thresholds; None considers all neurons.

        Raises:
            ConfigError: another number of layers, other sizes, or rules of the model that do not go
                with a predictor. Nothing is changed then.
        """
        if predictors is not None:
            self._check_layers("predictors", predictors)
        self._change("predictors", lambda: self._weights.with_predictor(predictors))

    def _change(self, what: str, make: Callable[[], Weights]) -> None:
        """Goes on with what `make` gives; what it finds wrong is the caller's setting."""
        try:
            weights = make()
        except ValueError as error:
            raise ConfigError(f"{what}: {error}") from error
        self._use(weights)

    def _check_layers(self, what: str, given: Sequence[object]) -> None:
        if len(given) != self.config.num_layers:
            raise ConfigError(f"{len(given)} {what} were given for {self.config.num_layers} layers")


def check_projection(name: str) -> None:
    """Raises ConfigError unless `name` is one of `PROJECTIONS`."""
    if name not in PROJECTIONS:
        raise ConfigError(f"{name!r} is not one of {', '.join(PROJECTIONS)}")


def _checked_thresholds(
    thresholds: Sequence[torch.Tensor], size: int, what: str
) -> list[torch.Tensor]:
    """One fp32 [size] per layer. Raises ConfigError for a shape or value that cannot be."""
    checked = [torch.as_tensor(one, dtype=torch.float32) for one in thresholds]
    for layer, one in enumerate(checked):
        if one.shape != (size,):
            raise ConfigError(f"{what} of layer {layer} is {list(one.shape)}, not [{size}]")
        if not bool((one >= 0).all()):
            raise ConfigError(f"{what} of layer {layer} has a negative or NaN value")
    return checked
