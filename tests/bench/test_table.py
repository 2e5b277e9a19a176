"""What a reader sees."""

from __future__ import annotations

from sparseinfer.bench.decode import Row
from sparseinfer.bench.plan import Plan
from sparseinfer.bench.run import BenchResult, FormatResult
from sparseinfer.bench.spread import Spread
from sparseinfer.bench.table import Table, tables

SPEED = Spread(90.0, 100.0, 130.0, (90.0, 100.0, 130.0))


def result(
    *, random: bool = False, rules: tuple[str, ...] = ("neurons",), **changes
) -> BenchResult:
    rows = [
        Row("sparseinfer", "int8", 0.0, SPEED, {"llama.cpp": Spread(1.0, 1.1, 1.2, ())}),
        Row(
            "sparseinfer", "int8", "own", SPEED, {"dense": Spread(1.2, 1.25, 1.3, ())},
            predicted=1.4, quotient=0.893, gb_s=25.0, bandwidth_fraction=0.81,
            sparsities={"neuron": 0.5, "ffn_bytes": 0.333, "model_bytes": 0.2}, perplexity=42.0,
        ),
        Row("llama.cpp", "Q8_0", None, SPEED),
    ]  # fmt: skip
    sides = {"llama.cpp": {"version": "x 1", "bits": {"ffn": 8.5, "lm_head": 8.5}}}
    facts = {"steps": 50, "mean_context": 57.5, "streaming_gb_s": SPEED, "warnings": []}
    facts |= {"same_tokens": {"llama.cpp": 7}}
    one = FormatResult("int8", rows, facts, sides, **changes)
    plan = Plan(("int8",), (0.0,), rules, ("dense",), 9, None, 32, (1,), 0, 0, 2, False)
    return BenchResult(plan, {"random_weights": random}, [one], 0.1, [])


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip(table.columns, table.rows[row], strict=True))


def test_every_column_of_a_sparse_row():
    (table,) = tables(result())
    assert cells(table, 1) == {
        "side": "sparseinfer",
        "weights": "int8",
        "sparsity": "own",
        "tokens/s": "100.0 (90.0-130.0)",
        "over llama.cpp": "-",
        "over dense": "1.25 (1.20-1.30)",
        "bytes allow": "1.40",
        "quotient": "0.89",
        "GB/s": "25.0",
        "of streaming": "81.0%",
        "neuron": "50.0%",
        "FFN bytes": "33.3%",
        "model bytes": "20.0%",
        "perplexity": "42.00",
    }
    assert cells(table, 2)["sparsity"] == "-"
    assert "50 steps" in table.title
    assert any("lm_head 8.50" in note for note in table.notes)


def test_notes_say_what_a_table_is_worth():
    (table,) = tables(result())
    assert "greedy text of llama.cpp: the first 7 of 51 tokens are ours" in table.notes
    assert not any("speed only" in note for note in table.notes)
    assert not any("stored by input" in note for note in table.notes)
    (table,) = tables(result(random=True, rules=("inputs",)))
    assert any("speed only" in note for note in table.notes)
    assert any("stored by input" in note for note in table.notes)


def test_plain_text_keeps_columns_aligned():
    (table,) = tables(result())
    _, header, *rows = table.plain().splitlines()[:5]
    start = header.index("tokens/s")
    assert all(row[start:].startswith("100.0 (") for row in rows)


def test_tables_of_prompts_and_batches_come_after():
    speed = {"min": 1.0, "median": 2.0, "max": 3.0, "values": [1.0, 2.0, 3.0]}
    prefill = [
        {"side": "sparseinfer", "tokens": 512, "speed": speed, "ratios": {"llama.cpp": speed}},
        {"side": "llama.cpp", "tokens": 512, "speed": speed, "ratios": {}},
    ]
    row = {"side": "sparseinfer", "target": 0.0, "batch": 2, "speed": speed}
    batch = [row | {"batch": 1, "ratios": {}}, row | {"ratios": {"batch 1": speed}}]
    _, prompts, batches = tables(result(prefill=prefill, batch=batch))
    assert cells(prompts, 0)["over llama.cpp"] == "2.00 (1.00-3.00)"
    assert cells(prompts, 1)["over llama.cpp"] == "-"
    assert cells(batches, 1)["over the first"] == "2.00 (1.00-3.00)"
