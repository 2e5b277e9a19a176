"""`sparseinfer inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseinfer.cli.console import (
    JSON_HELP,
    MODEL_HELP,
    megabytes,
    percent,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from sparseinfer.checkpoint import Checkpoint


def inspect(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "smollm2-135m",
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Show a model's shape, FFN form, thresholds, sizes and bytes per token.

    Examples:

        sparseinfer inspect ./smollm2-135m-chess
    """
    from sparseinfer.checkpoint import Checkpoint
    from sparseinfer.sources import resolve_model

    resolved = resolve_model(model)
    content = describe(Checkpoint.open(resolved.path))
    if as_json:
        print_json({"model": resolved.name, **content})
        return
    print_table(resolved.name, _rows(content))


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything `inspect` shows, as JSON values; verifies thresholds against the weights."""
    from sparseinfer.config import BYTES_PER_WEIGHT
    from sparseinfer.sparsity import expected_sparsities

    config, record = checkpoint.config, checkpoint.record
    thresholds = [
        {
            "min": float(threshold.min()),
            "median": float(threshold.median()),
            "max": float(threshold.max()),
        }
        for threshold in checkpoint.thresholds()
    ]
    calibrated = record.calibration.layer_sparsity if record and record.calibration else None
    layers = calibrated or [0.0] * config.num_layers
    expected = expected_sparsities(config, BYTES_PER_WEIGHT[checkpoint.dtype], layers)
    return {
        "path": str(checkpoint.path),
        "architecture": checkpoint.raw["architectures"][0]
        if checkpoint.raw.get("architectures")
        else config.family,
        "parameters": checkpoint.parameters,
        "weights": checkpoint.dtype,
        "weight_files_bytes": checkpoint.weight_bytes,
        "config": {key: value for key, value in vars(config).items() if key != "eos_token_ids"},
        "ffn": {"phi": config.phi, "psi": config.psi},
        "record": record.model_dump(mode="json") if record else None,
        "thresholds": thresholds if record and record.has_thresholds else None,
        "bytes_per_token_dense": expected.bytes_per_token_dense,
        "bytes_per_token_calibrated": expected.bytes_per_token_read if calibrated else None,
        "calibrated_sparsities": vars(expected) if calibrated else None,
    }


def _rows(content: dict[str, Any]) -> list[tuple[str, str]]:
    config, record = content["config"], content["record"]
    heads = f"{config['num_heads']} heads, {config['num_kv_heads']} key-value heads"
    rows = [
        ("path", content["path"]),
        ("architecture", content["architecture"]),
        ("parameters", f"{content['parameters']:,} ({content['weights']})"),
        (
            "shape",
            f"hidden {config['hidden_size']}, intermediate {config['intermediate_size']}, "
            f"{config['num_layers']} layers, {heads} of {config['head_dim']}, vocabulary "
            f"{config['vocab_size']}, context {config['context_length']}",
        ),
        ("FFN", f"phi = {content['ffn']['phi']}, psi = {content['ffn']['psi']}"),
        ("method", _method_text(record) if record else "none: a dense checkpoint"),
        ("weight files", megabytes(content["weight_files_bytes"])),
        ("bytes per token", f"{megabytes(content['bytes_per_token_dense'])} dense"),
    ]
    if content["calibrated_sparsities"]:
        found = content["calibrated_sparsities"]
        rows += [
            ("", f"{megabytes(content['bytes_per_token_calibrated'])} at calibrated sparsity"),
            (
                "calibrated sparsity",
                f"neuron {percent(found['neuron'])}, FFN bytes {percent(found['ffn_bytes'])}, "
                f"model bytes {percent(found['model_bytes'])}",
            ),
        ]
    elif content["ffn"]["phi"] != "silu":
        rows.append(("", "sparse bytes depend on the text: run sparseinfer eval"))
    for layer, found in enumerate(content["thresholds"] or []):
        rows.append(
            (
                f"threshold, layer {layer}",
                f"min {found['min']:.4g}, median {found['median']:.4g}, max {found['max']:.4g}",
            )
        )
    return rows


def _method_text(record: dict[str, Any]) -> str:
    target = record["target_neuron_sparsity"]
    aimed = f" at neuron sparsity {target:g}" if target is not None else ""
    if record["threshold"] is not None:
        aimed = f" with threshold {record['threshold']:g}"
    return f"{record['method']}{aimed}, from {record['parent']['reference']}"
