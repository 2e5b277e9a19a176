"""`sparseinfer convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparseinfer.cli.console import (
    JSON_HELP,
    MODEL_HELP,
    fraction,
    percent,
    print_json,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from sparseinfer.config import SparsityRecord


def convert(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    act: Annotated[
        str,
        typer.Option(help="relu, relu2, drelu, fatrelu, cats, chess, teal, wina, topk or sketch."),
    ],
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="In [0, 1), the same in every layer: fraction of neurons to skip (teal, wina: of "
            "the weights of attention and FFN)."
        ),
    ] = None,
    ppl_budget: Annotated[
        str | None,
        typer.Option(
            metavar="RISE",
            help="Search for what reads the fewest bytes while perplexity rises by at most this, "
            "such as 1%. Default of methods that need a target, without --sparsity: 1%.",
        ),
    ] = None,
    allocate: Annotated[
        str | None,
        typer.Option(
            help="How a search spreads sparsity over layers: auto (default: the best of the "
            "others), uniform, cett or sensitivity."
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="fatrelu: a constant threshold (default 0.01).")
    ] = None,
    chess_score: Annotated[str | None, typer.Option(help="chess: l1 (default) or l2.")] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="chess: thresholds on inputs of q and o too.")
    ] = False,
    within_block: Annotated[
        str | None,
        typer.Option(help="teal, wina: greedy (default) or uniform within each layer."),
    ] = None,
    stage: Annotated[
        int | None, typer.Option(help="relu: 2 puts a ReLU after each norm too.")
    ] = None,
    shift: Annotated[float | None, typer.Option(help="relu: b in relu(x - b).")] = None,
    sketch_bits: Annotated[
        int | None,
        typer.Option(help="sketch: bits of the copies that estimate neurons: 4 (default), 3 or 2."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Calibration text: coqa (default), lambada, pydoc, a file, or hf:ID."),
    ] = None,
    calib_tokens: Annotated[
        int | None, typer.Option(help="Tokens to calibrate on (default 8192).")
    ] = None,
    search_text: Annotated[
        str | None,
        typer.Option(help="Text to search on; default: what calibration leaves of its text."),
    ] = None,
    search_tokens: Annotated[
        int | None, typer.Option(help="Tokens to search on (default 4096).")
    ] = None,
    test_text: Annotated[
        str | None,
        typer.Option(help="Untouched text to measure a search's result on (default lambada)."),
    ] = None,
    allow_same_text: Annotated[
        bool, typer.Option("--allow-same-text", help="Test on a text that was calibrated on.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Which tokens are calibrated on (default 0).")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (as the checkpoint; bf16 for GGUF), fp32 or bf16.")
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; default ./<model>-<act>.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Convert a dense model to a sparse checkpoint.

    Examples:

        sparseinfer convert smollm2-135m --act chess --sparsity 0.5

        sparseinfer convert smollm2-135m --act chess --ppl-budget 5%

        sparseinfer convert smollm2-135m --act sketch --ppl-budget 5%

        sparseinfer convert smollm2-135m --act teal --sparsity 0.4

        sparseinfer convert llama-7b --act relu2
    """
    from sparseinfer.convert import convert as run
    from sparseinfer.eval import ModelProbe

    budget = None if ppl_budget is None else fraction(ppl_budget, "--ppl-budget")
    with progress() as report:
        done = run(
            model,
            act,
            out=output,
            sparsity=sparsity,
            threshold=threshold,
            chess_score=chess_score,
            attention=attention,
            within_block=within_block,
            stage=stage,
            shift=shift,
            sketch_bits=sketch_bits,
            text=text,
            calibration_tokens=calib_tokens,
            ppl_budget=budget,
            allocate=allocate,
            search_text=search_text,
            search_tokens=search_tokens,
            test_text=test_text,
            allow_same_text=allow_same_text,
            open_probe=ModelProbe,
            seed=seed,
            dtype=dtype,
            force=force,
            progress=report,
        )
    if as_json:
        expected = vars(done.expected) if done.expected else None
        print_json(
            {
                "output": str(done.out),
                "dtype": done.dtype,
                "record": done.record.model_dump(mode="json"),
                "calibrated_sparsities": expected,
                "notes": list(done.notes),
            }
        )
        return
    rows = [("written to", str(done.out)), ("method", act), ("weights", done.dtype)]
    if done.expected:
        rows += [
            ("calibrated on", _calibration_text(done.record)),
            ("neuron sparsity", percent(done.expected.neuron)),
            ("FFN byte sparsity", percent(done.expected.ffn_bytes)),
            ("model byte sparsity", percent(done.expected.model_bytes)),
        ]
    if done.record.budget:
        found = done.record.budget
        rows += [
            (
                "perplexity over dense",
                f"{found.best.perplexity_ratio:.4f} on {found.tokens} tokens of {found.text} that "
                f"were searched on (allocation {found.best.allocation}, {len(found.trace)} tries)",
            ),
            (
                "on untouched text",
                f"{found.test.perplexity_ratio:.4f} on {found.test.tokens} tokens of "
                f"{found.test.text}",
            ),
        ]
    rows += [("note", note) for note in done.notes]
    print_table(f"Converted {model}", rows)


def _calibration_text(record: SparsityRecord) -> str:
    assert record.calibration is not None  # whoever has expected sparsities was calibrated
    seen = record.calibration
    return f"{seen.tokens} tokens of {seen.text}, on which it gives:"
