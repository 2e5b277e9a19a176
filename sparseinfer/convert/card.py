"""README.md of a converted checkpoint: what it is, how it was made, how to load it."""

from __future__ import annotations

from sparseinfer.config import FinetuningRecord, SparsityRecord
from sparseinfer.convert.method import Method
from sparseinfer.kernels.sketch import GROUP
from sparseinfer.version import __version__


def model_card(name: str, parent: str, method: Method, record: SparsityRecord) -> str:
    """Markdown text of the card.

    Args:
        name: name of the converted folder.
        parent: how the dense parent is called (not a path: cards are published).
    """
    lines = [
        f"# {name}",
        "",
        f"`{parent}`, converted by sparseinfer {__version__} with **{method.name}** "
        f"({method.source}).",
        "",
        "## What it computes",
        "",
        f"Each FFN is `a = phi(x W_gate)`, `h = a * psi(x W_up)` where {_rule_text(record)}, "
        f"else 0, `y = h W_down`; here phi = {_phi_text(record)}, psi = {record.psi}, and t is "
        + _threshold_text(record)
        + f". Weights {'were fine-tuned' if record.finetuning else 'are those of the parent'}.",
        *_further_rules(record),
        "",
    ]
    if record.calibration is not None:
        measured = record.calibration
        mean = sum(measured.layer_sparsity) / len(measured.layer_sparsity)
        lines += [
            "## How it was calibrated",
            "",
            *_target_lines(record, mean),
            f"- text: `{measured.text}` (SHA-256 {measured.text_sha256}), {measured.tokens} tokens "
            f"in windows of {measured.context}, seed {measured.seed}",
            f"- score: {measured.score}",
            "",
        ]
    if record.finetuning is not None:
        lines += _finetuning_lines(record.finetuning)
    elif method.needs_finetuning:
        lines += [
            "## Quality",
            "",
            "A checkpoint that was trained with another activation loses most of its quality by "
            "this swap and needs fine-tuning before use.",
            "",
        ]
    lines += [
        "## How to load it",
        "",
        "With sparseinfer:",
        "",
        "```python",
        "import sparseinfer",
        f'model = sparseinfer.load("{name}")',
        "```",
        "",
        f"Plain transformers computes: {method.elsewhere}.",
        "",
    ]
    return "\n".join(lines)


def _finetuning_lines(tuned: FinetuningRecord) -> list[str]:
    mean = sum(tuned.layer_sparsity) / len(tuned.layer_sparsity)
    own = f", {tuned.self_generated:.0%} of it by the parent itself" if tuned.self_generated else ""
    lines = [
        "## How it was fine-tuned",
        "",
        f"- objective: {tuned.objective}, {tuned.tokens} tokens, {tuned.epochs:.2f} times the text",
        f"- text: `{' + '.join(tuned.texts)}`, {tuned.text_tokens} tokens{own} (SHA-256 of their "
        f"ids {tuned.text_sha256})",
        f"- neuron sparsity in the last steps: {mean:.4f}",
    ]
    if tuned.warm_start_tokens:
        lines.append(f"- layer-wise warm start before: {tuned.warm_start_tokens} tokens")
    settings = ", ".join(f"{name} {value}" for name, value in tuned.settings.items())
    return [*lines, f"- settings: {settings}", ""]


def _rule_text(record: SparsityRecord) -> str:
    if record.sketch_bits is None:
        return "`|a| >= t` and `a != 0`"
    return (
        f"`e >= t`, e being what {record.sketch_bits}-bit copies of W_gate and W_up (made of them "
        f"by sparseinfer, groups of {GROUP}) estimate `|h|` to be"
    )


def _phi_text(record: SparsityRecord) -> str:
    return f"relu(x - {record.shift:g})" if record.shift else record.phi


def _further_rules(record: SparsityRecord) -> list[str]:
    lines = []
    if record.top_k is not None:
        lines.append(f"Of those neurons each token keeps the {record.top_k} of largest `|a|`.")
    if record.input_relu:
        lines.append("A ReLU follows each norm that feeds attention or FFN.")
    if record.input_thresholds:
        names = ", ".join(record.input_thresholds)
        lines.append(
            f"Inputs of {names} below a threshold count as 0 (`sparsity.safetensors`); inputs of "
            "down are the neurons' `h`."
        )
    return lines


def _threshold_text(record: SparsityRecord) -> str:
    if not record.has_thresholds:
        return "0"
    if record.threshold is not None:
        return f"{record.threshold:g} everywhere (`sparsity.safetensors`)"
    return "one number per neuron and layer (`sparsity.safetensors`)"


def _target_lines(record: SparsityRecord, mean: float) -> list[str]:
    """What was asked for, as a sparsity or as a budget, and what came of it."""
    assert record.calibration is not None  # only calibrated records come here
    reached = [f"{mean:.4f} of the neurons"] if not record.target_projection_sparsity else []
    reached += [
        f"{sum(layers) / len(layers):.4f} of the inputs of {name}"
        for name, layers in record.calibration.input_sparsity.items()
    ]
    lines = [f"- skipped on the calibration tokens: {', '.join(reached)}"]
    if record.target_projection_sparsity is not None:
        wanted = f"{record.target_projection_sparsity:.3g} of the weights of every layer's "
        return [f"- target: {wanted} projections not read", *lines]
    if record.target_neuron_sparsity is not None:
        wanted = f"{record.target_neuron_sparsity:.3g} of the neurons of every layer skipped"
        return [f"- target: {wanted} (neuron sparsity, not bytes)", *lines]
    found = record.budget
    assert found is not None  # one of the three
    return [
        f"- target: perplexity at most {found.perplexity_rise:.3%} above dense, fewest bytes read",
        f"- found: {found.best.model_byte_sparsity:.2%} model byte sparsity (allocation "
        f"{found.best.allocation}), at {found.best.perplexity_ratio:.4f}x dense perplexity on "
        f"{found.tokens} tokens of `{found.text}` that were not calibrated on",
        f"- on untouched text: {found.test.perplexity_ratio:.4f}x on {found.test.tokens} tokens of "
        f"`{found.test.text}`",
        *lines,
    ]
