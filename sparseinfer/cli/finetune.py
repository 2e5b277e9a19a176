"""`sparseinfer finetune`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseinfer.cli.console import (
    JSON_HELP,
    bars,
    fraction,
    percent,
    print_json,
    print_table,
    reporter,
)
from sparseinfer.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from sparseinfer.finetune import Result
    from sparseinfer.finetune.metrics import Step
    from sparseinfer.report.finetuning import FinetuningReport

UNFINISHED = 4
"""Exit status of a run that stopped because its minutes were over."""
_SILENCE = 30.0
"""Seconds between lines where there is no terminal."""
_BARS = "▁▂▃▄▅▆▇█"
"""Neuron sparsity of a layer, from 0 to 1."""


def finetune(
    model: Annotated[str, typer.Argument(help="Local folder, .gguf file, hub id or alias.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    act: Annotated[
        str, typer.Option(help="Activation of the result: relu, relu2, drelu or fatrelu.")
    ] = "relu",
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text file, .jsonl, hf:ID, or coqa, lambada, pydoc; repeat to join."),
    ] = None,
    self_generate: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens that the model itself writes, beside a text or alone."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to train on; default: the whole text once.")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="prosparse, relu, stochastic, clipped or topk.")
    ] = "prosparse",
    schedule: Annotated[
        Path | None, typer.Option(help="prosparse: YAML file with the stages of lambda.")
    ] = None,
    target_sparsity: Annotated[
        float | None,
        typer.Option(help="prosparse: steer lambda to this mean neuron sparsity, in (0, 1)."),
    ] = None,
    distill: Annotated[
        float,
        typer.Option(help="Weight in [0, 1] of KL to the dense parent; the rest is the LM loss."),
    ] = 0.0,
    distill_ffn: Annotated[
        float, typer.Option(help="Weight of the FFN outputs' distance from the parent's.")
    ] = 0.0,
    stochastic_p: Annotated[
        float | None, typer.Option(help="stochastic: probability of SiLU below 0 (default 0.7).")
    ] = None,
    relu_fraction: Annotated[
        float | None,
        typer.Option(
            help="stochastic, clipped: last part of the steps that trains what the result computes."
        ),
    ] = None,
    soft_threshold: Annotated[
        float | None, typer.Option(help="clipped: tau in relu(x - tau) (default 0.1).")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="clipped: most that it is while training (default 2).")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="topk: neurons that a token keeps.")] = None,
    ppl_budget: Annotated[
        str | None,
        typer.Option(metavar="RISE", help="fatrelu: what its thresholds may cost (default 1%)."),
    ] = None,
    warm_start: Annotated[
        bool | None,
        typer.Option(
            "--warm-start/--no-warm-start",
            help="Fit layer by layer before training; default: for SiLU models.",
        ),
    ] = None,
    warm_start_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the text to fit on (default 50000).")
    ] = None,
    warm_start_only: Annotated[
        bool, typer.Option("--warm-start-only", help="Write what the fit gives; no training.")
    ] = False,
    control: Annotated[
        bool,
        typer.Option(
            "--control",
            help="Also tune the dense model and plain ReLU on the same tokens (OUTPUT-dense, "
            "OUTPUT-plain-relu).",
        ),
    ] = False,
    context: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    batch: Annotated[int, typer.Option(help="Windows of a step, in all.")] = 16,
    micro_batch: Annotated[
        int, typer.Option(help="Windows of one pass of one process; passes are accumulated.")
    ] = 4,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    final_lr: Annotated[float, typer.Option(help="Last learning rate, over the peak.")] = 0.1,
    warm_up: Annotated[float, typer.Option(help="Part of the steps that lr rises.")] = 0.03,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    clip_norm: Annotated[float, typer.Option(help="Largest norm of gradients; 0: any.")] = 1.0,
    precision: Annotated[
        str, typer.Option(help="Of the passes: bf16 or fp32; weights and optimiser are fp32.")
    ] = "bf16",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps from one saved state to the next.")] = 100,
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop after so many; the same command goes on (exit status 4)."),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave GPUs alone.")] = False,
    test_text: Annotated[
        str | None,
        typer.Option(help="Text to measure on, that nothing was trained on (default lambada)."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder of the report; default OUTPUT-report.")
    ] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Measure nothing after training.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Order of the text, and all that is drawn.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Fine-tune a dense model to a ReLU that leaves most neurons at rest.

    After an interruption the same command goes on where the last state was saved
    (OUTPUT.training). Several GPUs: accelerate launch -m sparseinfer finetune ...

    Examples:

        sparseinfer finetune smollm2-135m --text coqa --tokens 2000000 --target-sparsity 0.8 -o relu

        sparseinfer finetune ./my-llama --act relu2 --text hf:my/corpus --tokens 20000000 -o relu2

        sparseinfer finetune smollm2-135m --text coqa --warm-start-only -o warm
    """
    from sparseinfer.eval import ModelProbe
    from sparseinfer.finetune import Budget, ObjectiveSettings, Request, RunSettings
    from sparseinfer.finetune import finetune as run
    from sparseinfer.finetune.request import side_folder
    from sparseinfer.finetune.schedule import load_stages
    from sparseinfer.finetune.settings import ACTS, OBJECTIVES, PRECISIONS, one_of
    from sparseinfer.sources import EVALUATION_TEXT

    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes {minutes} is not a positive number")
    end = None if minutes is None else time.monotonic() + 60 * minutes
    if tokens is not None and tokens < 1:
        raise ConfigError(f"--tokens {tokens} is not a positive number")
    if tokens is not None and warm_start_only:
        raise ConfigError(
            "--tokens belongs to training; --warm-start-only does none: it has --warm-start-tokens"
        )
    if no_report and report is not None:
        raise ConfigError("give either --report or --no-report")
    if no_report and test_text is not None and act != "fatrelu":
        raise ConfigError("--test-text is measured on, and --no-report measures nothing")
    folder = report or side_folder(output, "report")
    if not no_report:
        _check_report(folder)
        test_text = test_text or EVALUATION_TEXT
    request = Request(
        ObjectiveSettings(
            act=one_of("--act", act, ACTS),
            objective=one_of("--objective", objective, OBJECTIVES),
            schedule=None if schedule is None else load_stages(schedule),
            target_sparsity=target_sparsity,
            stochastic_p=stochastic_p,
            relu_fraction=relu_fraction,
            soft_threshold=soft_threshold,
            clip=clip,
            top_k=top_k,
            distill=distill,
            distill_ffn=distill_ffn,
        ),
        RunSettings(
            tokens=0 if tokens is None else tokens,
            context=context,
            batch=batch,
            micro_batch=micro_batch,
            rate=lr,
            final_rate=final_lr,
            warm_up=warm_up,
            weight_decay=weight_decay,
            clip_norm=clip_norm or None,
            precision=one_of("--precision", precision, PRECISIONS),
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
        ),
        texts=tuple(text or ()),
        self_generate=self_generate,
        warm_start=_warm_start(warm_start, warm_start_tokens, warm_start_only),
        warm_start_only=warm_start_only,
        controls=control,
        shift_budget=None if ppl_budget is None else fraction(ppl_budget, "--ppl-budget"),
        test_text=test_text,
    )
    measured = None

    def measure(results: tuple[Result, ...]) -> None:
        nonlocal measured
        if no_report or test_text is None:
            return
        from sparseinfer.eval.finetuning import finetuning_report
        from sparseinfer.report import write

        measured = finetuning_report(results, text=test_text, progress=show)
        write(measured, folder)

    with bars(transient=False) as shown:
        show = reporter(shown)
        done = run(
            model,
            request,
            out=output,
            budget=Budget(save_every, end),
            cpu=cpu,
            open_probe=ModelProbe,
            force=force,
            progress=show,
            on_step=_steps(shown, as_json),
            on_results=measure,
        )
    if not done.finished:
        typer.echo(f"not finished: the same command goes on ({done.folder})", err=True)
        raise typer.Exit(UNFINISHED)
    if not done.results:  # another process of the run says it
        return
    results = [_result(one, measured) for one in done.results]
    if as_json:
        print_json({"results": results})
        return
    if measured is not None:
        typer.echo(f"report: {folder / 'report.html'}")
    for one in results:
        print_table(f"{one['run']}: {one['output']}", [(k, str(v)) for k, v in one.items()])


def _warm_start(wanted: bool | None, tokens: int | None, alone: bool) -> int | None:
    """Tokens of the warm start; None leaves it to the model."""
    from sparseinfer.finetune.request import WARM_START_TOKENS

    if wanted is False:
        if tokens is not None or alone:
            raise ConfigError("--no-warm-start goes with neither --warm-start-tokens nor -only")
        return 0
    if tokens == 0:
        raise ConfigError("--warm-start-tokens 0 is no warm start; that is --no-warm-start")
    if tokens is not None:
        return tokens
    return WARM_START_TOKENS if wanted or alone else None


def _check_report(folder: Path) -> None:
    """Finds out before hours of work whether a report can be written, and makes no folder yet."""
    nearest = folder.absolute()
    while not os.path.exists(nearest):  # noqa: PTH110 - of names that are too long, too
        nearest = nearest.parent
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise OutputError(f"cannot write the report to {folder}: {nearest} is no writable folder")


def _result(one: Result, report: FinetuningReport | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"run": one.name, "output": str(one.path)}
    if one.steps:
        last = one.steps[-1]
        facts |= {"tokens": last.tokens, "loss": last.loss, "sparsity_in_training": last.sparsity}
    for run in report.runs if report else ():
        if run.name == one.path.name:
            found = run.measurements[0]
            facts["text"] = found.text
            facts["perplexity"] = found.quality.perplexity
            if found.quality.dense:
                facts["perplexity_over_dense"] = found.quality.dense.ratio
            if found.control:
                facts["perplexity_over_dense_control"] = found.control.ratio
            facts["neuron_sparsity"] = found.sparsity.neuron
            facts["ffn_byte_sparsity"] = found.sparsity.ffn_bytes
            facts["model_byte_sparsity"] = found.sparsity.model_bytes
    return facts


def _steps(shown: Progress, quiet: bool) -> Callable[[str, Step, int], None]:
    """A bar for each run with what the newest step measured; where stderr is no terminal, a line
    every half minute."""
    said = time.monotonic()
    tasks: dict[str, Any] = {}

    def show(name: str, step: Step, steps: int) -> None:
        nonlocal said
        if shown.console.is_terminal:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=steps, measured="")
            shown.update(tasks[name], completed=step.step, measured=_measured(step, True))
        elif not quiet and (time.monotonic() - said > _SILENCE or step.step == steps):
            said = time.monotonic()
            typer.echo(f"{name} {step.step}/{steps} {_measured(step, False)}", err=True)

    return show


def _measured(step: Step, bars: bool) -> str:
    """Loss, lambda, tokens/s, mean sparsity, and a bar per layer."""
    text = (
        f"loss {step.loss:.3f}, lambda {step.factor:.2e}, {step.tokens_per_second:,.0f} tokens/s, "
        f"at rest {percent(step.sparsity or 0.0)}"
    )
    return (
        f"{text} {''.join(_BARS[int(7.999 * (one or 0))] for one in step.layers)}" if bars else text
    )
