"""From a validated request to work that the model can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from sparseinfer.engine.scheduling import TokenRequest
from sparseinfer.errors import SparseInferError, UnsupportedError
from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.limits import MAX_PROMPT_LOGPROBS, Limits
from sparseinfer.serve.schema import ChatRequest, CompletionRequest, GenerationRequest
from sparseinfer.serve.served import Served
from sparseinfer.serve.text import AnswerText
from sparseinfer.serve.vocabulary import Grammar
from sparseinfer.serve.work import Prompt, Task, Work
from sparseinfer.tokenizer import TextStream

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's own default of `max_tokens` on /v1/completions."""


def completion_work(request: CompletionRequest, served: Served, limits: Limits) -> Work:
    """Raises ApiError (400) for ids outside the vocabulary, more tokens than fit the context, and
    whatever else this model or this server cannot do."""
    _check_count("prompt", "prompts", len(request.prompt), limits.prompts)
    counted = "n" if request.best_of is None else "best_of"
    _check_count(counted, "answers", request.candidates, limits.choices)
    shown = request.logprobs is not None
    _check(request, served, logprobs=shown)
    # Answers are compared by their probability; a prompt alone is computed for its own.
    logprobs = 0 if request.candidates > request.n else None
    of_prompt = 0 if request.max_tokens == 0 else None
    if request.logprobs is not None:
        logprobs = request.logprobs
        of_prompt = request.logprobs if request.echo else None
    tasks: list[Task] = []
    for given in request.prompt:
        prompt = _prompt(given, served, echo=request.echo, offsets=request.echo and shown)
        asked = TokenRequest(
            prompt.ids,
            _answer_tokens(
                request.max_tokens,
                DEFAULT_COMPLETION_TOKENS,
                len(prompt.ids),
                served.context,
                prompt="prompt",
            ),
            ignore_eos=request.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=of_prompt,
            dense=not request.sparsity,
        )
        text = partial(
            AnswerText,
            stops=request.stop,
            offset=len(prompt.echo),
            with_entries=shown,
            # A harness that asks for one token finds one entry, even where the text ends there.
            with_end=True,
        )
        tasks += _tasks(request, request.candidates, asked, prompt, served, text)
    if of_prompt is not None:
        _check_prompt_logprobs((1 + of_prompt) * sum(len(it.prompt.ids) for it in tasks))
    return _checked(Work(tuple(tasks), request.candidates, request.n), served)


def chat_work(request: ChatRequest, served: Served, limits: Limits) -> Work:
    """Raises ApiError (400) where the template refuses, the context does not hold the tokens, and
    for whatever else this model or this server cannot do."""
    _check_count("n", "answers", request.n, limits.choices)
    _check(request, served, logprobs=request.logprobs)
    text = partial(AnswerText, stops=request.stop, with_entries=request.logprobs)
    if request.offered:
        text = _reading_tools(text, request, served)
    grammar = _grammar(request, served)
    _check_chars(sum(len(it.content or "") for it in request.messages), "messages", served)
    ids = served.template.encode(
        [message.for_template() for message in request.messages],
        request.offered,
        request.chat_template_kwargs,
    )
    limit = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = _answer_tokens(
        getattr(request, limit), None, len(ids), served.context, prompt="messages", limit=limit
    )
    prompt = Prompt(tuple(ids))
    asked = TokenRequest(
        prompt.ids,
        max_tokens,
        ignore_eos=request.ignore_eos,
        logprobs=request.top_logprobs if request.logprobs else None,
        dense=not request.sparsity,
    )
    tasks = tuple(_tasks(request, request.n, asked, prompt, served, text, grammar))
    return _checked(Work(tasks, request.n, request.n), served)


def _tasks(
    request: GenerationRequest,
    count: int,
    asked: TokenRequest,
    prompt: Prompt,
    served: Served,
    text: Callable[..., AnswerText],
    grammar: Grammar | None = None,
) -> Iterator[Task]:
    """The candidates for one prompt: the same request, each with a seed and a mask of its own."""
    for number in range(count):
        mask = None if grammar is None else grammar.mask()
        each = replace(asked, sampling=request.sampling(number), mask=mask)
        yield Task(prompt, each, lambda: text(served.tokenizer.stream(prompt.ids)))


def _reading_tools(
    text: Callable[..., AnswerText], request: ChatRequest, served: Served
) -> Callable[..., AnswerText]:
    """`text`, with the calls in it told from the rest."""
    style = served.template.tool_format()
    names = frozenset(tool.function.name for tool in request.offered)
    markers = {token: marker for marker, token in served.template.markers.items()}

    def reading(stream: TextStream) -> AnswerText:
        reader = style.reader(names, parallel=request.parallel_tool_calls)
        return text(stream, reader=reader, markers=markers)

    return reading


def _grammar(request: ChatRequest, served: Served) -> Grammar | None:
    """What the answers are held to, if anything."""
    if request.demanded:
        style = served.template.tool_format()
        functions = [
            {"name": tool.function.name, "parameters": tool.function.parameters}
            for tool in request.demanded
        ]
        lark = style.grammar(
            functions, served.template.markers, parallel=request.parallel_tool_calls
        )
        return served.vocabulary.grammar(lark, "tools")
    if request.response_format is not None:
        schema = request.response_format.schema_to_follow
        return served.vocabulary.json_grammar(schema, "response_format")
    return None


def _prompt(given: str | list[int], served: Served, *, echo: bool, offsets: bool) -> Prompt:
    """
    Args:
        echo: keep the text, which answers begin with.
        offsets: and where in it each token begins.
    """
    if isinstance(given, str):
        _check_chars(len(given), "prompt", served)
        if offsets:
            ids, spans = served.tokenizer.encode_with_offsets(given, special=True)
            return Prompt(tuple(ids), given, tuple(start for start, _ in spans))
        return Prompt(tuple(served.tokenizer.encode(given)), given if echo else "")
    for token in given:
        if not 0 <= token < served.vocab_size:
            raise ApiError(
                400,
                f"prompt: a token id is outside the vocabulary [0, {served.vocab_size})",
                param="prompt",
            )
    if not echo:
        return Prompt(tuple(given))
    stream, text, starts = served.tokenizer.stream(), "", []
    for token in given:
        starts.append(len(text))
        text += stream.push(token)
    return Prompt(tuple(given), text, tuple(starts))


def _check_chars(count: int, param: str, served: Served) -> None:
    """Refuses what need not be tokenised to be too long; that of megabytes takes many seconds."""
    if count > served.most_chars:
        raise ApiError(
            400,
            f"{param}: {count} characters are more than the model's context of {served.context} "
            "tokens holds; shorten it",
            param=param,
            code="context_length_exceeded",
        )


def _check_count(param: str, what: str, count: int, most: int) -> None:
    if count > most:
        raise ApiError(
            400, f"{param}: {count} {what} are asked for, at most {most} are made", param=param
        )


def _check_prompt_logprobs(count: int) -> None:
    if count > MAX_PROMPT_LOGPROBS:
        raise ApiError(
            400,
            f"logprobs: {count} log-probabilities of prompts are asked for, at most "
            f"{MAX_PROMPT_LOGPROBS} are made; send fewer prompts at a time",
            param="logprobs",
        )


def _check(request: GenerationRequest, served: Served, *, logprobs: bool) -> None:
    """What depends on the model's vocabulary."""
    if logprobs and not served.vocabulary.is_known:
        raise ApiError(400, "logprobs: not supported with this model's tokenizer", param="logprobs")
    for token in request.logit_bias:
        if token >= served.vocab_size:
            raise ApiError(
                400,
                f"logit_bias: token id {token} is outside the vocabulary [0, {served.vocab_size})",
                param="logit_bias",
            )


def _checked(work: Work, served: Served) -> Work:
    """Raises ApiError (400) for what the engine refuses."""
    try:
        for task in work.tasks[:: work.candidates]:
            served.scheduler.check(task.request)
    except UnsupportedError as error:
        raise ApiError(400, f"sparsity: {error}", param="sparsity") from error
    except SparseInferError as error:
        raise ApiError(400, str(error)) from error
    return work


def _answer_tokens(
    asked: int | None,
    default: int | None,
    count: int,
    context: int,
    *,
    prompt: str,
    limit: str = "max_tokens",
) -> int:
    """Tokens of the answer behind a prompt of `count` tokens.

    Args:
        asked: by the client; None: the default, or all that the context leaves.
        prompt, limit: names of the fields that the two numbers come from.

    Raises:
        ApiError: 400 where the context does not hold them.
    """
    if count == 0:
        raise ApiError(400, f"{prompt}: gives no tokens", param=prompt)
    room = context - count
    if room < (0 if asked == 0 else 1):
        raise ApiError(
            400,
            f"{prompt}: has {count} tokens, but the model's context holds {context} including the "
            "answer; shorten it",
            param=prompt,
            code="context_length_exceeded",
        )
    if asked is None:
        return room if default is None else min(default, room)
    if asked > room:
        raise ApiError(
            400,
            f"{limit}: the model's context holds {context} tokens, but {count + asked} were asked "
            f"for ({count} of the prompt, {asked} of the answer)",
            param=limit,
            code="context_length_exceeded",
        )
    return asked
