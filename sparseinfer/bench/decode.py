"""Decoding speed of one weight format: our rows against the baselines of the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from sparseinfer.bench.child import Child, Children
from sparseinfer.bench.protocol import Entrant, Progress, alternate
from sparseinfer.bench.settings import Target
from sparseinfer.bench.spread import Spread, ratios
from sparseinfer.bench.states import Ours, State

MAX_AUTO_STEPS = 256
_AUTO_SECONDS = 0.5
_MIN_AUTO_STEPS = 8
_WARM_UP_STEPS = 8
_BANDWIDTH_RUNS = 3
_CHOOSER_RUNS = 9


@dataclass
class Chooser:
    """What a row's predictor or sketch costs, and how good a predictor's guesses are.

    Attributes:
        bytes_per_token: read before any neuron is, all layers together.
        microseconds: of one layer, alone and for one token.
        quality: fields of `predictors.metrics.Quality`, means over layers, and `lowest_recall`;
            empty for a sketch.
    """

    bytes_per_token: float
    microseconds: Spread
    quality: dict[str, float] = field(default_factory=dict)


@dataclass
class Row:
    """What was measured of one side in one state; speeds in tokens per second.

    Attributes:
        ratios: per round, this row's speed over each baseline's.
        predicted: bytes that our dense row reads for a token over those this row reads, weights and
            keys and values together.
        quotient: ratio over our dense row, over `predicted`; None for baselines and without one.
        gb_s: bytes read per second at the median speed.
        sparsities: realised while decoding; None where everything is read.
        rule: of `settings.RULES`, where a sparsity was calibrated.
        parts: bytes read of each part of the model, see `sparsity.ByteCounts`; None for baselines.
        chooser: None where no predictor or sketch takes part.
    """

    side: str
    weights: str
    target: Target | None
    speed: Spread
    ratios: dict[str, Spread] = field(default_factory=dict)
    predicted: float | None = None
    quotient: float | None = None
    weight_bytes: float | None = None
    kv_bytes: float | None = None
    gb_s: float | None = None
    bandwidth_fraction: float | None = None
    sparsities: dict[str, float] | None = None
    perplexity: float | None = None
    rule: str | None = None
    parts: dict[str, float] | None = None
    chooser: Chooser | None = None
    tokens: list[int] = field(default_factory=list)
    """What was generated, to compare sides by."""


class Decoder:
    """One side in one state, as an entrant, and what its runs counted."""

    def __init__(self, name: str, child: Child, state: State | None, prompt: Sequence[int]) -> None:
        self.name, self.child, self.state = name, child, state
        self._prompt = list(prompt)
        self.steps = _WARM_UP_STEPS
        self.tokens: list[int] = []
        self._up: list[int] = []
        self._down: list[int] = []
        self._gate: list[int] | None = None
        self._reads: dict[str, Any] | None = None
        self._inputs: dict[str, list[int]] = {}
        self._counted = 0

    def prepare(self) -> None:
        if self.state is not None:
            self.child.call("set_thresholds", **self.state.arguments)

    def run(self) -> float:
        """Tokens per second of one decode."""
        found = self.child.call("decode", prompts=[self._prompt], steps=self.steps)
        self.tokens = found["ids"][0]
        if found["up_rows"] is not None:
            self._up = _added(self._up, found["up_rows"])
            self._down = _added(self._down, found["down_rows"])
            if found.get("gate_rows") is not None:
                self._gate = _added(self._gate or [], found["gate_rows"])
            self._reads = found.get("reads")
            for name, used in (found.get("inputs") or {}).items():
                self._inputs[name] = _added(self._inputs.get(name, []), used)
            self._counted += self.steps
        return self.steps / found["seconds"]

    def forget(self) -> None:
        """Drops the counts of warm-up runs."""
        self._up, self._down, self._gate, self._inputs, self._counted = [], [], None, {}, 0

    def account(self) -> dict[str, Any]:
        """Bytes and sparsities of the counted runs."""
        return self.child.call(
            "account",
            up_rows=self._up,
            down_rows=self._down,
            tokens=self._counted,
            context=self.mean_context,
            inputs=self._inputs,
            gate_rows=self._gate,
            reads=self._reads,
        )

    def chooser(self) -> Chooser | None:
        """What chose neurons in the counted runs; None where nothing did."""
        if self.state is None or self._reads is None:
            return None
        self.prepare()
        times = self.child.call("chooser_microseconds", runs=_CHOOSER_RUNS)
        return Chooser(sum(self._reads["chooser"]), Spread.of(times), _means(self.state.found))

    @property
    def mean_context(self) -> float:
        """Positions that a step attends to, the token itself included, on average."""
        return len(self._prompt) + (self.steps + 1) / 2


def _means(layers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each field over layers, and the lowest recall; empty for no layers."""
    if not layers:
        return {}
    names = (name for name in layers[0] if name != "tokens")
    means = {name: sum(one[name] for one in layers) / len(layers) for name in names}
    return means | {"lowest_recall": min(one["recall"] for one in layers)}


def _added(sums: list[int], more: list[int]) -> list[int]:
    return [a + b for a, b in zip(sums or [0] * len(more), more, strict=True)]


def measure_decode(
    group: Children,
    ours: Ours,
    states: Sequence[State],
    baselines: dict[str, Child],
    prompt: Sequence[int],
    *,
    weights: str,
    pairs: int,
    steps: int | None,
    max_steps: int,
    progress: Progress,
) -> tuple[list[Row], dict[str, Any]]:
    """Alternates our states and the baselines; rows in that order, and facts about the run.

    Args:
        states: ours; a dense one first if there is one.
        baselines: name -> process of other engines.
        steps: per timed run; None chooses.
        max_steps: what contexts have room for.
    """
    decoders = [Decoder(f"sparseinfer {s.name}", ours.of(s), s, prompt) for s in states]
    decoders += [Decoder(name, child, None, prompt) for name, child in baselines.items()]
    speeds = {}
    for done, decoder in enumerate(decoders, start=1):
        decoder.prepare()
        decoder.run()  # pages in weights and code
        speeds[decoder.name] = decoder.run()
        progress(f"{weights}: warming up", done, len(decoders))
    if steps is None:
        # Ours and llama.cpp set the pace: slower baselines would make every other run too short.
        fast = [s for name, s in speeds.items() if not name.startswith("transformers")]
        steps = min(max_steps, max(_MIN_AUTO_STEPS, round(_AUTO_SECONDS * max(fast))))
    for decoder in decoders:
        decoder.steps = steps
        decoder.forget()
    entrants = [Entrant(d.name, d.child, d.prepare, d.run) for d in decoders]
    bandwidths = [ours.rows.call("bandwidth") for _ in range(_BANDWIDTH_RUNS)]
    warnings = alternate(entrants, pairs, group, what=f"{weights}: decoding", progress=progress)
    bandwidths += [ours.rows.call("bandwidth") for _ in range(_BANDWIDTH_RUNS)]
    streaming = Spread.of(bandwidths)
    rows = [
        _our_row(decoder, entrant, weights)
        if decoder.state is not None
        else _their_row(decoder, entrant)
        for decoder, entrant in zip(decoders, entrants, strict=True)
    ]
    _relate(rows, streaming.median)
    facts = {
        "steps": steps,
        "mean_context": decoders[0].mean_context,
        "streaming_gb_s": streaming,
        "same_tokens": _same_tokens(rows),
        "warnings": warnings,
    }
    return rows, facts


def _our_row(decoder: Decoder, entrant: Entrant, weights: str) -> Row:
    assert decoder.state is not None
    counted = decoder.account()
    return Row(
        side="sparseinfer",
        weights=weights,
        target=decoder.state.target,
        speed=Spread.of(entrant.results),
        weight_bytes=counted["weight_bytes"],
        kv_bytes=counted["kv_bytes"],
        sparsities=counted["sparsities"],
        rule=decoder.state.rule,
        parts=counted["parts"],
        chooser=decoder.chooser(),
        tokens=decoder.tokens,
    )


def _their_row(decoder: Decoder, entrant: Entrant) -> Row:
    counted = decoder.child.call("account", context=decoder.mean_context)
    return Row(
        side=decoder.name,
        weights=counted["weights"],
        target=None,
        speed=Spread.of(entrant.results),
        weight_bytes=counted["weight_bytes"],
        kv_bytes=counted["kv_bytes"],
        tokens=decoder.tokens,
    )


def _relate(rows: list[Row], streaming: float) -> None:
    """Fills in what follows from several rows together."""
    dense = next((row for row in rows if row.side == "sparseinfer" and row.target == 0), None)
    for row in rows:
        total = _total_bytes(row)
        row.gb_s = total * row.speed.median / 1e9
        row.bandwidth_fraction = row.gb_s / streaming
        if row.side != "sparseinfer":
            continue
        for other in rows:
            if other.side != "sparseinfer":
                row.ratios[other.side] = ratios(row.speed.values, other.speed.values)
        if dense is not None and row is not dense:
            row.ratios["dense"] = ratios(row.speed.values, dense.speed.values)
            row.predicted = _total_bytes(dense) / total
            row.quotient = row.ratios["dense"].median / row.predicted


def _same_tokens(rows: Sequence[Row]) -> dict[str, int]:
    """How many tokens each baseline's text shares with our dense one before they part.

    Greedy texts of equal weights part where two logits are so close that rounding decides.
    """
    dense = next((row for row in rows if row.side == "sparseinfer" and row.target == 0), None)
    found = {}
    for row in rows:
        if dense is not None and row.side != "sparseinfer":
            pairs = zip(dense.tokens, row.tokens, strict=False)
            found[row.side] = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return found


def _total_bytes(row: Row) -> float:
    assert row.weight_bytes is not None
    assert row.kv_bytes is not None
    return row.weight_bytes + row.kv_bytes
