"""An evaluation for reading."""

from __future__ import annotations

from sparseinfer.eval.evaluate import Evaluation
from sparseinfer.eval.firing import Firing
from sparseinfer.eval.phases import PhaseSparsity
from sparseinfer.eval.ppl_p import PplP
from sparseinfer.eval.tasks import TaskResults

_SHADES = " ░▒▓█"
_COLUMNS = 64


def evaluation_markdown(evaluation: Evaluation) -> str:
    """The evaluation as Markdown."""
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
        "## Sparsity of prompts and of generated text",
        "",
        "| phase | tokens | neuron sparsity | FFN byte sparsity | model byte sparsity |",
        "|---|---|---|---|---|",
        *_phase_rows(e.prefill, "prompts"),
        *_phase_rows(e.decode, "generated"),
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
    lines += ["", "## Which neurons fire", ""]
    lines += _firing_lines(e.firing) if e.firing else [f"Left out: {e.no_firing_because}."]
    if e.ppl_p:
        lines += ["", *_ppl_p_lines(e.ppl_p)]
    if e.tasks:
        lines += ["", *_task_lines(e.tasks)]
    return "\n".join(lines) + "\n"


def _quality_rows(e: Evaluation) -> list[str]:
    rows = [
        f"| token perplexity | {e.perplexity:.3f} |",
        f"| bits per byte | {e.bits_per_byte:.4f} |",
    ]
    if e.comparison is None:
        return [*rows, f"| against dense | left out: {e.no_comparison_because} |"]
    dense = f"{e.comparison.parent}, {e.comparison.weights}"
    interval = e.comparison.interval
    sure = (
        f"{interval.low:.4f} to {interval.high:.4f}, paired over {interval.windows} windows"
        if interval
        else f"none: {e.comparison.no_interval_because}"
    )
    return [
        *rows,
        f"| dense perplexity ({dense}) | {e.comparison.perplexity:.3f} |",
        f"| ratio to the dense parent | {e.comparison.perplexity_ratio:.4f} |",
        f"| 95% interval of the ratio | {sure} |",
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


def _phase_rows(phase: PhaseSparsity | None, name: str) -> list[str]:
    if phase is None:
        return [f"| {name} | 0 | - | - | - |"]
    s = phase.sparsities
    return [
        f"| {name} | {phase.tokens} | {s.neuron:.4f} | {s.ffn_bytes:.4f} | {s.model_bytes:.4f} |"
    ]


def _firing_lines(firing: Firing) -> list[str]:
    lines = [
        f"On the first {firing.tokens} tokens of the text, in windows of {firing.context}. Dead "
        "neurons never fire, hot ones for at least half of the tokens; CETT is the norm of what "
        "masks take away from an FFN's output over the norm of that output without masks.",
        "",
        "| layer | dead | hot | active per token | std | lowest tenth | highest tenth | CETT |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layer, one in enumerate(firing.layers):
        low, high = one.active_deciles[1], one.active_deciles[-2]
        lines.append(
            f"| {layer} | {one.dead:.4f} | {one.hot:.4f} | {one.active_mean:.4f} | "
            f"{one.active_std:.4f} | {low:.4f} | {high:.4f} | {one.cett:.4f} |"
        )
    return [
        *lines,
        "",
        "Neurons of each layer from the most to the least active, by how often they fire (blank: "
        "never, full: for every token):",
        "",
        "```",
        *(f"{layer:>3} {_shaded(one.rates)}" for layer, one in enumerate(firing.layers)),
        "```",
    ]


def _shaded(rates: tuple[float, ...]) -> str:
    """At most `_COLUMNS` characters for the rates of a layer."""
    width = -(-len(rates) // _COLUMNS)
    groups = [rates[start : start + width] for start in range(0, len(rates), width)]
    means = [sum(group) / len(group) for group in groups]
    # Only 0 is blank, only 1 is full: a rare neuron is not a dead one.
    steps = len(_SHADES) - 2
    return "".join(
        _SHADES[0] if m == 0 else _SHADES[-1] if m == 1 else _SHADES[1 + int(m * steps)]
        for m in means
    )


def _ppl_p_lines(found: PplP) -> list[str]:
    return [
        f"## PPL-{100 * found.p:g}% sparsity",
        "",
        f"Without its own thresholds the model has a perplexity of {found.perplexity:.3f}. Leaving "
        f"out neurons with small outputs, by one CETT of {found.cett:.4f} in all layers, "
        f"{found.neuron_sparsity:.4f} of all neurons can rest at {found.perplexity_ratio:.4f} "
        "times that. Such a mask skips rows of down alone.",
        "",
        "| CETT tried | perplexity ratio | neuron sparsity |",
        "|---|---|---|",
        *(
            f"| {step.cett:.4f} | {step.perplexity_ratio:.4f} | {step.neuron_sparsity:.4f} |"
            for step in found.trace
        ),
    ]


def _task_lines(tasks: TaskResults) -> list[str]:
    lines = [
        "## Tasks",
        "",
        f"By lm-eval {tasks.harness.get('lm_eval_version', '')}, on this engine, "
        + (f"the first {tasks.limit} examples of each." if tasks.limit else "all examples."),
        "",
        "| task | metric | value | standard error | examples | data |",
        "|---|---|---|---|---|---|",
    ]
    for score in tasks.scores:
        metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
        stderr = "-" if score.stderr is None else f"{score.stderr:.4f}"
        lines.append(
            f"| {score.task} | {metric} | {score.value:.4f} | {stderr} | {score.examples} | "
            f"{score.data} |"
        )
    return lines
