"""Reports: versioned JSON is canonical, Markdown is made from the same values."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparseinfer import strict_json
from sparseinfer.atomic import check_writable, write_files
from sparseinfer.eval.evaluate import Evaluation
from sparseinfer.version import __version__

REPORT_VERSION = 1


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain JSON values, with format and library versions."""
    import torch
    import transformers

    values = asdict(evaluation)
    values["record"] = evaluation.record.model_dump(mode="json") if evaluation.record else None
    return {
        "report_version": REPORT_VERSION,
        "versions": {
            "sparseinfer": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        **values,
    }


def evaluation_markdown(evaluation: Evaluation) -> str:
    """The evaluation for reading."""
    e = evaluation
    method = f"{e.record.method}" if e.record else "dense (not converted)"
    lines = [
        f"# Evaluation of {e.model}",
        "",
        "| | |",
        "|---|---|",
        f"| method | {method} |",
        f"| weights | {e.weights} |",
        *_quality_rows(e),
        *_sparsity_rows(e),
        "",
        "## Recipe",
        "",
        f"- text `{e.recipe.text}`, SHA-256 `{e.recipe.text_sha256}`",
        f"- {e.recipe.tokens_scored} tokens ({e.recipe.bytes_scored} bytes) scored in windows of "
        f"{e.recipe.context} tokens, stride {e.recipe.stride}, by {e.recipe.by}",
        "",
        "## Neuron sparsity by layer",
        "",
        "| layer | realised | calibrated |",
        "|---|---|---|",
    ]
    calibrated = e.record.calibration.layer_sparsity if e.record and e.record.calibration else None
    for layer, realised in enumerate(e.layer_sparsity):
        target = f"{calibrated[layer]:.4f}" if calibrated else "-"
        lines.append(f"| {layer} | {realised:.4f} | {target} |")
    return "\n".join(lines) + "\n"


def _quality_rows(e: Evaluation) -> list[str]:
    rows = [
        f"| token perplexity | {e.perplexity:.3f} |",
        f"| bits per byte | {e.bits_per_byte:.4f} |",
    ]
    if e.comparison is None:
        return [*rows, f"| against dense | left out: {e.no_comparison_because} |"]
    dense = f"{e.comparison.parent}, {e.comparison.weights}"
    return [
        *rows,
        f"| dense perplexity ({dense}) | {e.comparison.perplexity:.3f} |",
        f"| ratio to the dense parent | {e.comparison.perplexity_ratio:.4f} |",
        f"| KL(dense, model), nats per token | {e.comparison.kl:.4f} |",
        f"| top-1 agreement with dense | {e.comparison.top1_agreement:.4f} |",
    ]


def _sparsity_rows(e: Evaluation) -> list[str]:
    s = e.sparsities
    return [
        f"| neuron sparsity | {s.neuron:.4f} |",
        f"| FFN byte sparsity | {s.ffn_bytes:.4f} |",
        f"| model byte sparsity | {s.model_bytes:.4f} |",
        f"| weight bytes per token, dense | {s.bytes_per_token_dense:,} |",
        f"| weight bytes per token, read | {s.bytes_per_token_read:,} |",
    ]


def write_report(folder: Path, name: str, content: dict[str, Any], markdown: str) -> None:
    """Writes `name`.json and `name`.md into a folder, each whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    text = strict_json.dumps(content, indent=2) + "\n"
    files = {f"{name}.json": text, f"{name}.md": markdown}
    write_files(folder, files, what="the report")


def check_report_folder(folder: Path) -> None:
    """Finds out, before hours of work, whether `write_report` could write there.

    Raises:
        OutputError: the folder cannot be written.
    """
    check_writable(folder, what="the report")
