"""`compare`: many methods at many sparsities on one model, text, tasks and bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.compare.checkpoints import check_same_tokens, open_converted
from sparseinfer.compare.contenders import CONTENDERS, Contender
from sparseinfer.compare.report import comparison_report
from sparseinfer.compare.run import Run
from sparseinfer.compare.store import Store
from sparseinfer.compare.targets import Target, masks_for, targets
from sparseinfer.config import DTypeName
from sparseinfer.convert.calibrate import Sample, measure_layers, sample_windows
from sparseinfer.convert.curve import LayerCurve
from sparseinfer.convert.masks import Masks
from sparseinfer.convert.options import check_seed
from sparseinfer.engine import Model
from sparseinfer.engine.settings import check_threads
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.eval.evaluate import DEFAULT_TOKENS, choose_context
from sparseinfer.eval.provenance import TASK_PACKAGES, Stopwatch, model_facts, provenance
from sparseinfer.eval.tasks import open_tasks
from sparseinfer.eval.windows import Recipe, Window, make_windows
from sparseinfer.formats import import_dtype
from sparseinfer.packed import is_packed
from sparseinfer.packed.source import choose_model_formats
from sparseinfer.report import ComparisonReport
from sparseinfer.report.comparison import MissingPoint
from sparseinfer.sources import CALIBRATION_TEXT, EVALUATION_TEXT, load_text, resolve_model
from sparseinfer.tokenizer import Tokenizer, load_tokenizer
from sparseinfer.version import __version__

DEFAULT_METHODS = ("cats", "chess", "teal", "wina", "topk", "sketch", "oracle")
DEFAULT_SPARSITIES = (0.3, 0.5, 0.7)
DEFAULT_CALIBRATION_TOKENS = 8192


def compare(
    model: str,
    checkpoints: Sequence[str] = (),
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    sparsities: Sequence[float] = DEFAULT_SPARSITIES,
    model_bytes: Sequence[float] = (),
    text: str = EVALUATION_TEXT,
    tokens: int | None = DEFAULT_TOKENS,
    context: int | None = None,
    calibration_text: str = CALIBRATION_TEXT,
    calibration_tokens: int = DEFAULT_CALIBRATION_TOKENS,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    weights: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    allow_same_text: bool = False,
    fresh: bool = False,
    progress: Progress = no_progress,
) -> ComparisonReport:
    """Calibrates methods on one text and measures them on another, beside the dense model.

    Thresholds are the same sparsity in every layer. Results are kept as they come: the same
    comparison, run again after an interruption or with more methods, goes on from there.

    Args:
        model: a dense checkpoint: local folder, `.gguf` file, hub id or alias.
        checkpoints: models converted from it, which are measured as they are.
        methods: of `CONTENDERS`.
        sparsities: targets in [0, 1) in each method's own words: neurons, and for teal and wina
            the weights of attention and FFN.
        model_bytes: targets in (0, 1) as fractions of model bytes not read, on the calibration
            text; what a method cannot reach is reported as missing.
        tokens: score about this many tokens from the start of the text; None scores all.
        context: window size in tokens; default 1024, or the model's context where shorter.
        tasks, limit: see `eval.evaluate`; every point does them.
        weights: type to hold the model in, see `engine.load`.
        seed: which tokens are calibrated on.
        allow_same_text: measure on the text that is calibrated on.
        fresh: forget results of earlier runs.

    Raises:
        SparseInferError: any of its kinds; nothing is computed where options do not fit.
    """
    asked = targets(_contenders(methods), sparsities, model_bytes)
    _check(asked, checkpoints, tokens, calibration_tokens, seed)
    check_threads(threads)
    watch = Stopwatch()
    with watch.stage("opening"):
        opened = open_tasks(tasks, limit) if tasks else None
        parent = _open_dense(model, weights)
        tokenizer = load_tokenizer(parent.path)
        evaluation, calibration = load_text(text), load_text(calibration_text)
        if evaluation.sha256 == calibration.sha256 and not allow_same_text:
            raise ConfigError(
                f"text {evaluation.name} is also calibrated on: what is measured on it is not held "
                "out; give another --text, or --allow-same-text"
            )
        context = choose_context(context, parent)

        def windows_by(own: Tokenizer) -> tuple[list[Window], Recipe]:
            return make_windows(
                evaluation, own, tokens=tokens, context=context, stride=None, by="prefill"
            )

        windows, recipe = windows_by(tokenizer)
        converted = [open_converted(one, parent, weights) for one in checkpoints]
        for one in converted:
            own = tokenizer if one.source.path == parent.path else load_tokenizer(one.source.path)
            check_same_tokens(one.name, windows_by(own)[0], windows)
        sample = sample_windows(
            calibration, tokenizer, parent.config, tokens=calibration_tokens, seed=seed
        )

        def open_dense() -> Model:
            return Model(parent, weights=weights, threads=threads, prefill="fp32")

        dense = open_dense()
        store = Store(_recipe(parent, dense, recipe, sample, tokens))
        if fresh:
            store.clear()
    run = Run(
        dense,
        open_dense,
        windows,
        store,
        opened,
        tokenizer,
        total=1 + len(asked) + len(converted),
        progress=progress,
    )
    with watch.stage("calibrating"):
        chosen, missing = _choose_masks(asked, run, parent, dense, sample, progress)
    with watch.stage("measuring"):
        points = run.methods(chosen)
        points += [run.checkpoint(one, weights, threads) for one in converted]
    return comparison_report(
        model=model_facts(model, parent, dense, parent=None),
        provenance=provenance(
            {
                "model": model,
                "checkpoints": list(checkpoints),
                "methods": list(methods),
                "sparsity": list(sparsities),
                "model_bytes": list(model_bytes),
                "text": text,
                "tokens": tokens,
                "context": context,
                "calibration_text": calibration_text,
                "calibration_text_sha256": calibration.sha256,
                "calibration_tokens": sample.tokens,
                "tasks": list(tasks),
                "limit": limit,
                "weights": str(dense.formats),
                "allow_same_text": allow_same_text,
            },
            threads=dense.threads,
            seed=seed,
            packages=TASK_PACKAGES if opened else (),
        ),
        recipe=recipe,
        points=points,
        missing=missing,
        timing=watch.timing(),
    )


def _contenders(names: Sequence[str]) -> list[Contender]:
    for name in names:
        if name not in CONTENDERS:
            raise ConfigError(f"unknown method {name!r}; choose among {', '.join(CONTENDERS)}")
    return [CONTENDERS[name] for name in dict.fromkeys(names)]


def _check(
    asked: Sequence[Target],
    checkpoints: Sequence[str],
    tokens: int | None,
    calibration_tokens: int,
    seed: int,
) -> None:
    if not asked and not checkpoints:
        raise ConfigError("nothing to compare: give methods and sparsities, or checkpoints")
    for target in asked:
        if not (math.isfinite(target.value) and 0 <= target.value < 1):
            raise ConfigError(f"sparsity {target.value} is outside [0, 1)")
    keys = [target.key for target in asked]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"asked for twice: {key}")
    if tokens is not None and tokens < 1:
        raise ConfigError(f"tokens {tokens} is not a positive number")
    if calibration_tokens < 1:
        raise ConfigError(f"calibration tokens {calibration_tokens} is not a positive number")
    check_seed(seed)


def _open_dense(model: str, weights: str) -> Checkpoint:
    resolved = resolve_model(model, dtype=import_dtype(weights))
    if is_packed(resolved.path):
        raise UnsupportedError(
            f"{model} is packed: methods are calibrated on checkpoints; give the one it was packed "
            "from"
        )
    parent = Checkpoint.open(resolved.path)
    choose_model_formats(parent, weights)  # refuses before long work
    record = parent.record
    if record is not None and (record.masks_anything or record.changes_relu):
        raise ConfigError(
            f"{model} was already converted by {record.method}: begin with its parent "
            f"{record.parent.reference}, and give converted models after it"
        )
    if parent.config.psi != "id":
        raise UnsupportedError(f"{model} is a dReLU model: methods on those are not supported")
    return parent


def _recipe(
    parent: Checkpoint, dense: Model, recipe: Recipe, sample: Sample, tokens: int | None
) -> dict[str, Any]:
    """All that a point's results depend on."""
    return {
        "version": __version__,
        "weights_sha256": parent.weights_sha256,
        "config": vars(parent.config) | {"eos_token_ids": sorted(parent.config.eos_token_ids)},
        "formats": str(dense.formats),
        "recipe": vars(recipe),
        "tokens": tokens,
        "calibration": [sample.text.sha256, sample.tokens, sample.windows.shape[1], sample.seed],
    }


def _choose_masks(
    asked: Sequence[Target],
    run: Run,
    parent: Checkpoint,
    dense: Model,
    sample: Sample,
    progress: Progress,
) -> tuple[list[tuple[Target, Masks | None]], list[MissingPoint]]:
    """Targets with their masks, None for those whose results are all known, and targets that
    cannot be reached."""
    pending = {target.contender.name: target.contender for target in asked if not run.knows(target)}
    curves: dict[str, list[LayerCurve]] = {name: [] for name in pending}
    if pending:
        act = parent.raw.get("hidden_act", "silu")
        for layer in measure_layers(
            parent,
            sample,
            hidden_act=act,
            phi=arch.ACTIVATIONS[act][0],
            dtype=_calibration_dtype(parent, dense),
            sketches={one.sketch_bits for one in pending.values() if one.sketch_bits is not None},
            progress=progress,
        ):
            for name, contender in pending.items():
                curves[name].append(contender.curve(layer))
    chosen, missing = [], []
    for target in asked:
        masks, because = None, run.why_missing(target)
        if because is None and not run.knows(target):
            own = curves[target.contender.name]
            masks, because = masks_for(target, own, dense.config, dense.formats)
            if because is not None:
                run.keep_missing(target, because)
        if because is None:
            chosen.append((target, masks))
        else:
            missing.append(
                MissingPoint(
                    method=target.contender.name,
                    target=target.value,
                    target_kind=target.kind,
                    because=because,
                )
            )
    return chosen, missing


def _calibration_dtype(parent: Checkpoint, dense: Model) -> DTypeName:
    """Calibration rounds weights as the engine holds them where it holds them unquantised."""
    layers = dense.weight_type
    return layers if layers in ("fp32", "bf16") else parent.dtype
