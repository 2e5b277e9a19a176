"""`sparseinfer generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sparseinfer.cli.console import (
    DEVICE_HELP,
    GPU_MEMORY_HELP,
    HUGE_PAGES_HELP,
    JSON_HELP,
    MODEL_HELP,
    PREDICTOR_HELP,
    THREADS_HELP,
    WEIGHTS_HELP,
    percent,
    print_json,
)


def generate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read it from stdin.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens to produce.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep this much probability mass.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below min_p times the best.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="For repeatable sampling.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Wrap the prompt in the chat template; default where the model has one.",
        ),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Speed and realised sparsity, on stderr.")
    ] = False,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)] = "auto",
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    gpu_memory: Annotated[str | None, typer.Option(metavar="SIZE", help=GPU_MEMORY_HELP)] = None,
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
    huge_pages: Annotated[bool, typer.Option("--huge-pages", help=HUGE_PAGES_HELP)] = False,
    predictor: Annotated[Path | None, typer.Option(help=PREDICTOR_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Generate text, printed as it comes.

    Examples:

        sparseinfer generate smollm2-135m "The capital of France is" --stats

        sparseinfer generate ./smollm2-135m-chess - < prompt.txt

        sparseinfer generate ./smollm2-135m-relu "Once" --predictor ./smollm2-135m-relu-lowrank
    """
    from sparseinfer.engine import Sampling, load
    from sparseinfer.errors import PromptError
    from sparseinfer.predictors.watched import watched_windows
    from sparseinfer.sparsity import sparsities
    from sparseinfer.tokenizer import load_tokenizer

    sampling = Sampling(temperature, top_k, top_p, min_p, seed)
    text = _read_prompt(prompt)
    loaded = load(
        model,
        device=device,
        gpu_memory=gpu_memory,
        windows=None if gpu_memory is None else watched_windows(model),
        weights=weights,
        threads=threads,
        huge_pages=huge_pages,
        predictor=predictor,
    )
    tokenizer = load_tokenizer(loaded.path)
    if chat or (chat is None and tokenizer.has_chat_template):
        ids = tokenizer.encode_chat([{"role": "user", "content": text}])
    else:
        ids = tokenizer.encode(text)
    if not ids:
        raise PromptError("the prompt is empty")
    generation = loaded.generate(ids, max_tokens=max_tokens, sampling=sampling)
    stream = tokenizer.stream(ids)
    pieces, tokens = [], []
    for token in generation:
        piece = stream.push(token)
        tokens.append(token)
        pieces.append(piece)
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not as_json:
        sys.stdout.write("\n")
        sys.stdout.flush()
    counts = generation.sparsity
    measured = sparsities(loaded.config, loaded.formats, counts) if counts.tokens else None
    if as_json:
        print_json(
            {
                "text": "".join(pieces),
                "token_ids": tokens,
                "finish_reason": generation.finish_reason,
                "prompt_tokens": generation.prompt_tokens,
                "completion_tokens": generation.completion_tokens,
                "prefill_tokens_per_second": generation.prefill_tokens_per_second,
                "decode_tokens_per_second": generation.decode_tokens_per_second,
                "decode_sparsities": vars(measured) if measured else None,
                "weights": loaded.formats.layers,
                "head": loaded.formats.head,
                "device": loaded.device,
                "threads": loaded.threads,
            }
        )
    elif stats:
        speed = generation.decode_tokens_per_second
        print(
            f"prompt {generation.prompt_tokens} tokens at "
            f"{generation.prefill_tokens_per_second or 0:.1f} tokens/s; answer "
            f"{generation.completion_tokens} tokens"
            + (f" at {speed:.1f} tokens/s" if speed else ""),
            file=sys.stderr,
        )
        if not measured:
            print("realised sparsity: nothing was decoded after the first token", file=sys.stderr)
        else:
            print(
                f"realised sparsity while decoding: neuron {percent(measured.neuron)}, FFN bytes "
                f"{percent(measured.ffn_bytes)}, model bytes {percent(measured.model_bytes)}",
                file=sys.stderr,
            )


def _read_prompt(prompt: str) -> str:
    from sparseinfer.errors import PromptError

    if prompt != "-":
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # bytes of the command line that are no text
            raise PromptError(f"the prompt is not UTF-8 text (character {error.start})") from error
        return prompt
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise PromptError(f"stdin is not UTF-8 text (byte {error.start})") from error
