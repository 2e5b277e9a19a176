"""What the plane of speed and quality shows, said plainly."""

from __future__ import annotations

from sparseinfer.bench.decode import Row
from sparseinfer.bench.plane import findings, plane
from sparseinfer.bench.spread import Spread


def row(side, weights, target, speed, perplexity, rule=None):
    return Row(side, weights, target, Spread.of([speed]), perplexity=perplexity, rule=rule)


THEIRS = [
    row("llama.cpp", "BF16", None, 90.0, 40.0),
    row("llama.cpp", "Q8_0", None, 130.0, 40.1),
    row("llama.cpp", "Q4_0", None, 170.0, 44.0),
]


def test_every_point_of_ours_is_on_one_side():
    points = plane(
        [
            row("sparseinfer", "bf16", 0.0, 95.0, 40.0),
            row("sparseinfer", "int8", 0.5, 150.0, 41.0, "sketch"),
            row("sparseinfer", "int4", 0.5, 180.0, 60.0, "chess"),
            row("sparseinfer", "int4", 0.0, 180.0, 43.0),
            *THEIRS,
        ]
    )
    beyond, over_bf16, over_q8, over_q4, worse, behind = findings(points)
    assert "llama.cpp BF16, llama.cpp Q8_0, llama.cpp Q4_0" in beyond
    assert beyond.endswith(
        "bf16 dense (95.0 tokens/s, 40.00), int8 sketch 0.5 (150.0 tokens/s, 41.00), "
        "int4 dense (180.0 tokens/s, 43.00)"
    )
    assert over_bf16.endswith("llama.cpp BF16: bf16 dense (95.0 tokens/s, 40.00)")
    assert over_q8.endswith("llama.cpp Q8_0: none")
    assert over_q4.endswith("llama.cpp Q4_0: int4 dense (180.0 tokens/s, 43.00)")
    assert worse.endswith("int4 chess 0.5 (180.0 tokens/s, 60.00)")
    assert behind.endswith("none")


def test_what_llama_cpp_beats_in_both_is_behind():
    points = plane([row("sparseinfer", "bf16", "own", 89.0, 40.05), *THEIRS])
    assert findings(points)[0].endswith(": none")
    assert findings(points)[-1].endswith("bf16 own (89.0 tokens/s, 40.05)")


def test_perplexities_that_rounding_parts_are_equal():
    ours = [
        row("sparseinfer", "bf16", 0.0, 95.0, 40.05),
        row("sparseinfer", "bf16", "own", 89.0, 39.95),
        row("sparseinfer", "int8", 0.0, 95.0, 40.5),
    ]
    beyond, over_bf16, worse, behind = findings(plane([*ours, THEIRS[0]]))
    assert beyond.endswith(": bf16 dense (95.0 tokens/s, 40.05)")
    assert over_bf16.endswith("BF16: bf16 dense (95.0 tokens/s, 40.05)")
    assert worse.endswith(": int8 dense (95.0 tokens/s, 40.50)")
    assert behind.endswith(": bf16 own (89.0 tokens/s, 39.95)")


def test_without_a_rival_or_without_quality_there_is_no_plane():
    ours = row("sparseinfer", "bf16", 0.0, 95.0, 40.0)
    assert plane([ours]) == ()
    assert plane([ours, row("llama.cpp", "BF16", None, 90.0, None)]) == ()
    assert findings(()) == ()
