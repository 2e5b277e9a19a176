"""`sparseinfer demo`: the main job on the embedded model, from download to report."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseinfer.cli.console import JSON_HELP, percent, print_json, print_table, progress

if TYPE_CHECKING:
    from sparseinfer.checkpoint import Checkpoint
    from sparseinfer.engine import Model
    from sparseinfer.eval import Evaluation
    from sparseinfer.report import EvaluationReport
    from sparseinfer.tokenizer import Tokenizer

MODEL, METHOD = "smollm2-135m", "sketch"
"""Of the methods without training the fastest at the budget (docs/methods.md)."""
BUDGET = 0.05
"""Rise of perplexity that is allowed."""
PROMPT = "Explain in three sentences why the sky is blue."
ANSWER_TOKENS = 96
EVALUATION_TOKENS = 4096
ROUNDS = 5


@dataclass(frozen=True)
class Race:
    """Greedy answers of both models, and decode speeds measured in turns."""

    dense_text: str
    sparse_text: str
    dense_speeds: list[float]
    sparse_speeds: list[float]

    @property
    def ratios(self) -> list[float]:
        """Sparse over dense, pair by pair."""
        return [s / d for s, d in zip(self.sparse_speeds, self.dense_speeds, strict=True)]


def demo(
    report: Annotated[Path, typer.Option(help="Folder for report.json, .md and .html.")] = Path(
        "demo-report"
    ),
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the sparse checkpoint goes.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Default: physical cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Convert the embedded 135M model with a sketch, at a rise of perplexity by at most 5%, and
    compare it with its dense parent. Takes some minutes.

    Examples:

        sparseinfer demo --report demo-report
    """
    from sparseinfer.checkpoint import Checkpoint
    from sparseinfer.engine import Model
    from sparseinfer.engine.settings import check_threads
    from sparseinfer.eval import evaluate
    from sparseinfer.report import check_folder, write
    from sparseinfer.sources import resolve_model
    from sparseinfer.tokenizer import load_tokenizer

    check_threads(threads)
    check_folder(report)
    sparse_path = output or Path(f"{MODEL}-{METHOD}")
    with progress() as show:
        converted = _convert_once(sparse_path, show)
        dense = Model(Checkpoint.open(resolve_model(MODEL).path), threads=threads)
        sparse = Model(converted, threads=threads)
        race = _race(dense, sparse, load_tokenizer(converted.path), show)
        held = str(sparse.formats)
        del dense, sparse
        evaluation = evaluate(
            str(sparse_path), tokens=EVALUATION_TOKENS, threads=threads, progress=show
        )
    content = _report(race, evaluation, held)
    write(content, report)
    if as_json:
        print_json(content.model_dump(mode="json"))
    else:
        print_table("sparseinfer demo", _rows(race, evaluation, report))


def _convert_once(out: Path, show: Any) -> Checkpoint:
    """The converted checkpoint, from an earlier run where it is still what this run would make."""
    from sparseinfer.checkpoint import Checkpoint
    from sparseinfer.convert import convert
    from sparseinfer.errors import OutputError
    from sparseinfer.eval import ModelProbe
    from sparseinfer.sources import CALIBRATION_TEXT

    if out.exists():
        found = Checkpoint.open(out)
        record = found.record
        if record and record.calibration and record.budget and record.parent.reference == MODEL:
            made = (record.method, record.budget.perplexity_rise, record.calibration.text)
            if made == (METHOD, BUDGET, CALIBRATION_TEXT):
                return found
        raise OutputError(f"{out} is not the demo's checkpoint; choose another output (-o)")
    # Other allocations measure every layer, which takes minutes more.
    convert(
        MODEL,
        METHOD,
        ppl_budget=BUDGET,
        allocate="uniform",
        open_probe=ModelProbe,
        out=out,
        progress=show,
    )
    return Checkpoint.open(out)


def _race(dense: Model, sparse: Model, tokenizer: Tokenizer, show: Any) -> Race:
    """Both models answer the same prompt in turns: only ratios within one run mean anything."""
    ids = tokenizer.encode_chat([{"role": "user", "content": PROMPT}])
    speeds: tuple[list[float], list[float]] = ([], [])
    texts = ["", ""]
    for turn in range(1, ROUNDS + 1):
        for side, model in enumerate((dense, sparse)):
            # No stop ids: every turn decodes the same number of tokens.
            generation = model.generate(ids, max_tokens=ANSWER_TOKENS, stop_ids=())
            tokens = list(generation)
            assert generation.decode_tokens_per_second is not None
            speeds[side].append(generation.decode_tokens_per_second)
            stop = next((i for i, t in enumerate(tokens) if t in model.stop_ids), len(tokens))
            texts[side] = tokenizer.decode(tokens[:stop])
        show("generating, dense and sparse in turns", turn, ROUNDS)
    return Race(texts[0], texts[1], *speeds)


def _spread(values: list[float], unit: str = "") -> str:
    return (
        f"{statistics.median(values):.2f}{unit} "
        f"(min {min(values):.2f}, max {max(values):.2f}, n {len(values)})"
    )


def _rows(race: Race, evaluation: Evaluation, report: Path) -> list[tuple[str, str]]:
    against, found = evaluation.comparison, evaluation.sparsities
    rows = [
        ("prompt", PROMPT),
        ("dense answer", race.dense_text),
        ("sparse answer", race.sparse_text),
        ("dense tokens/s", _spread(race.dense_speeds)),
        ("sparse tokens/s", _spread(race.sparse_speeds)),
        ("sparse / dense", _spread(race.ratios, "x")),
    ]
    if against:
        rows += [
            ("dense perplexity", f"{against.perplexity:.2f}"),
            (
                "sparse perplexity",
                f"{evaluation.perplexity:.2f} ({against.perplexity_ratio:.3f}x, "
                f"{evaluation.recipe.tokens_scored} tokens of {evaluation.recipe.text})",
            ),
        ]
    return [
        *rows,
        ("neuron sparsity", percent(found.neuron)),
        ("FFN byte sparsity", percent(found.ffn_bytes)),
        ("model byte sparsity", percent(found.model_bytes)),
        ("report", str(report / "report.html")),
    ]


def _report(race: Race, evaluation: Evaluation, held: str) -> EvaluationReport:
    """The evaluation with speeds and answers.

    Args:
        held: formats of both models' weights.
    """
    from sparseinfer.eval.report import evaluation_report
    from sparseinfer.report.evaluation import Answer
    from sparseinfer.report.parts import SpeedRow, Spread

    def spread(values: list[float]) -> Spread:
        return Spread(min=min(values), median=statistics.median(values), max=max(values))

    def row(side: str, speeds: list[float], over: dict[str, Spread]) -> SpeedRow:
        return SpeedRow(
            side=side,
            weights=held,
            phase="decode",
            tokens_per_second=spread(speeds),
            over=over,
        )

    speed = (
        row("sparse", race.sparse_speeds, {"dense": spread(race.ratios)}),
        row("dense", race.dense_speeds, {}),
    )
    answers = tuple(
        Answer(side=side, prompt=PROMPT, answer=text)
        for side, text in (("dense", race.dense_text), ("sparse", race.sparse_text))
    )
    return evaluation_report(evaluation, speed=speed, answers=answers)
