"""`sparseinfer inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseinfer.cli.console import (
    JSON_HELP,
    MODEL_HELP,
    megabytes,
    percent,
    print_json,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sparseinfer.checkpoint import Checkpoint
    from sparseinfer.config import CalibrationRecord, ModelConfig, SparsityRecord
    from sparseinfer.formats import WeightFormats
    from sparseinfer.packed import Packed
    from sparseinfer.sparsity import ByteCounts, CandidateReads


def inspect(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "smollm2-135m",
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read all weights: NaN, Inf, and a packed artifact's hash."),
    ] = False,
    predictor: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a predictor for MODEL; default: MODEL's own, where it has one."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Show a model's shape, FFN form, thresholds, sizes and bytes per token.

    Examples:

        sparseinfer inspect ./smollm2-135m-chess

        sparseinfer inspect ./llama2-7b-int4 --verify
    """
    from sparseinfer.packed import open_model
    from sparseinfer.sources import resolve_model

    resolved = resolve_model(model)
    source = open_model(resolved.path)
    content = describe(source)
    if verify:
        with progress() as report:
            _verify(source, report)
    content["verified"] = verify
    content["predictor"] = _predictor(source, predictor)
    if as_json:
        print_json({"model": resolved.name, **content})
        return
    print_table(resolved.name, _rows(content))


def _verify(source: Checkpoint | Packed, report: Any) -> None:
    from sparseinfer.checkpoint import Checkpoint
    from sparseinfer.checkpoint.writer import validate_weights

    if isinstance(source, Checkpoint):
        validate_weights(source, report)
    else:
        source.verify(report)


def _predictor(source: Checkpoint | Packed, given: Path | None) -> dict[str, Any] | None:
    """What it is; one that does not fit the model is refused."""
    from sparseinfer.engine.predictor import open_predictor
    from sparseinfer.predictors.artifact import is_predictor

    if given is None and not is_predictor(source.path):
        return None
    record = open_predictor(source.path if given is None else given, source).record
    return {
        "kind": record.kind,
        "recall": record.recall,
        "bytes_per_token": sum(layer.bytes_per_token for layer in record.layers),
    }


def describe(source: Checkpoint | Packed) -> dict[str, Any]:
    """Everything `inspect` shows, as JSON values; verifies a checkpoint's thresholds against its
    weights."""
    import math

    from sparseinfer import arch
    from sparseinfer.packed import Packed
    from sparseinfer.packed.source import choose_model_formats
    from sparseinfer.sparsity import calibrated_sparsities, expected_sparsities

    config, record = source.config, source.record
    thresholds = [_spread(threshold) for threshold in source.thresholds()]
    input_thresholds = {
        name: [_spread(threshold) for threshold in layers]
        for name, layers in source.input_thresholds().items()
    }
    calibrated = record.calibration if record else None
    formats = choose_model_formats(source, "auto")
    reads = _sketch_reads(config, formats, record)
    if calibrated:
        expected = calibrated_sparsities(config, formats, calibrated, reads)
    else:
        expected = expected_sparsities(config, formats, [0.0] * config.num_layers)
    packed = source.source.model_dump(mode="json") if isinstance(source, Packed) else None
    return {
        "path": str(source.path),
        "architecture": _architecture(source),
        "parameters": sum(math.prod(shape) for shape in arch.tensor_shapes(config).values()),
        "weights": source.formats.layers if isinstance(source, Packed) else source.dtype,
        "head": source.formats.head if isinstance(source, Packed) else source.dtype,
        "packed_from": packed,
        "weight_files_bytes": source.weight_bytes,
        "config": {key: value for key, value in vars(config).items() if key != "eos_token_ids"},
        "ffn": {"phi": config.phi, "psi": config.psi},
        "mask": record.mask if record else "gate",
        "sketch": _sketch(formats, record, reads),
        "record": record.model_dump(mode="json") if record else None,
        "thresholds": thresholds if record and record.has_thresholds else None,
        "input_thresholds": input_thresholds,
        "bytes_per_token_dense": expected.bytes_per_token_dense,
        "bytes_per_token_calibrated": expected.bytes_per_token_read if calibrated else None,
        "calibrated_sparsities": vars(expected) if calibrated else None,
        "bytes_per_token_parts": _parts(config, formats, calibrated, reads),
    }


def _sketch_reads(
    config: ModelConfig, formats: WeightFormats, record: SparsityRecord | None
) -> CandidateReads | None:
    """What choosing neurons reads, where a sketch does."""
    from sparseinfer.sparsity import CandidateReads

    if record is None or record.sketch_bits is None:
        return None
    return CandidateReads.of_sketch(config, formats, record.sketch_bits)


def _sketch(
    formats: WeightFormats, record: SparsityRecord | None, reads: CandidateReads | None
) -> dict[str, Any] | None:
    if record is None or reads is None:
        return None
    stored = "planes" if formats.layers == "int8" else "side copy"
    return {"bits": record.sketch_bits, "stored": stored, "bytes": sum(reads.chooser)}


def _parts(
    config: ModelConfig,
    formats: WeightFormats,
    calibrated: CalibrationRecord | None,
    reads: CandidateReads | None,
) -> dict[str, dict[str, int] | None]:
    """Bytes of weights that a decode step reads, by part."""
    from sparseinfer.sparsity import bytes_per_token, calibrated_bytes

    def rounded(counted: ByteCounts) -> dict[str, int]:
        return {part: round(count) for part, count in counted.parts.items()}

    everything = [1.0] * config.num_layers
    dense = bytes_per_token(config, formats, everything, everything)
    sparse = calibrated_bytes(config, formats, calibrated, reads) if calibrated else None
    return {"dense": rounded(dense), "calibrated": rounded(sparse) if sparse else None}


def _spread(threshold: Tensor) -> dict[str, float]:
    return {
        "min": float(threshold.min()),
        "median": float(threshold.median()),
        "max": float(threshold.max()),
    }


def _architecture(source: Checkpoint | Packed) -> str:
    from sparseinfer.packed import Packed

    if isinstance(source, Packed):
        return source.config.family
    return (source.raw.get("architectures") or [source.config.family])[0]


def _rows(content: dict[str, Any]) -> list[tuple[str, str]]:
    config, record = content["config"], content["record"]
    heads = f"{config['num_heads']} heads, {config['num_kv_heads']} key-value heads"
    rows = [
        ("path", content["path"]),
        ("architecture", content["architecture"]),
        ("parameters", f"{content['parameters']:,} ({_weights_text(content)})"),
        (
            "shape",
            f"hidden {config['hidden_size']}, intermediate {config['intermediate_size']}, "
            f"{config['num_layers']} layers, {heads} of {config['head_dim']}, vocabulary "
            f"{config['vocab_size']}, context {config['context_length']}",
        ),
        ("FFN", f"phi = {content['ffn']['phi']}, psi = {content['ffn']['psi']}"),
        ("method", _method_text(record) if record else "none: a dense model"),
        *_sketch_row(content["sketch"]),
        *_predictor_row(content["predictor"]),
        ("weight files", megabytes(content["weight_files_bytes"])),
        ("bytes per token", f"{megabytes(content['bytes_per_token_dense'])} dense"),
    ]
    if content["verified"]:
        rows.append(("verified", "all weights are finite" + _hash_text(content)))
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
    parts = content["bytes_per_token_parts"]
    for name in ("dense", "calibrated"):
        if parts[name] is not None:
            rows.append((f"{name} bytes by part", _parts_text(parts[name])))
    rows += _threshold_rows("threshold", content["thresholds"] or [])
    for name, layers in content["input_thresholds"].items():
        rows += _threshold_rows(f"{name} inputs", layers)
    return rows


def _sketch_row(sketch: dict[str, Any] | None) -> list[tuple[str, str]]:
    if sketch is None:
        return []
    size = megabytes(sketch["bytes"])
    where = {"planes": f"the high plane of gate and up, {size} of the weights themselves",
             "side copy": f"a copy of gate and up, {size} beside the weights"}  # fmt: skip
    return [("sketch", f"{sketch['bits']} bits: {where[sketch['stored']]}")]


def _predictor_row(predictor: dict[str, Any] | None) -> list[tuple[str, str]]:
    if predictor is None:
        return []
    size = megabytes(predictor["bytes_per_token"])
    return [
        ("predictor", f"{predictor['kind']} for recall {predictor['recall']:g}, {size} a token")
    ]


def _parts_text(parts: dict[str, int]) -> str:
    return ", ".join(f"{part} {megabytes(count)}" for part, count in parts.items() if count)


def _threshold_rows(what: str, layers: list[dict[str, float]]) -> list[tuple[str, str]]:
    return [
        (
            f"{what}, layer {layer}",
            f"min {found['min']:.4g}, median {found['median']:.4g}, max {found['max']:.4g}",
        )
        for layer, found in enumerate(layers)
    ]


def _weights_text(content: dict[str, Any]) -> str:
    if not content["packed_from"]:
        return content["weights"]
    return f"packed as {content['weights']}, head {content['head']}"


def _hash_text(content: dict[str, Any]) -> str:
    return ", and are what was packed (SHA-256)" if content["packed_from"] else ""


def _method_text(record: dict[str, Any]) -> str:
    target = record["target_neuron_sparsity"]
    aimed = f" at neuron sparsity {target:g}" if target is not None else ""
    if record["target_projection_sparsity"] is not None:
        aimed = f" at projection sparsity {record['target_projection_sparsity']:g}"
    if record["budget"] is not None:
        aimed = f" within {100 * record['budget']['perplexity_rise']:g}% of dense perplexity"
    if record["threshold"] is not None:
        aimed = f" with threshold {record['threshold']:g}"
    if record["mask"] != "gate":
        aimed += f", mask {record['mask']}"
    if record["shift"] != 0:
        aimed += f", shift {record['shift']:g}"
    if record["input_relu"]:
        aimed += ", a ReLU after each norm"
    return f"{record['method']}{aimed}, from {record['parent']['reference']}"
