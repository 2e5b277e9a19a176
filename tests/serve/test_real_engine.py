"""The whole way: a checkpoint on disk, the real scheduler, the server, the client."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import openai
import pytest
import torch
import transformers
from predictor_files import write_predictor

from sparseinfer.engine import Model, Sampling, load
from sparseinfer.serve import ModelSettings, serve_model
from sparseinfer.tokenizer import load_tokenizer

from .conftest import check_error, eventually, serving
from .events import choices_of, chunks_of
from .scripted import CALLS, END, byte_tokenizer

CONTEXT = 128


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=CALLS + 3,  # more than the tokenizer knows
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().backend.hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(checkpoint) -> Model:
    """The same model, for what the server should say."""
    return load(checkpoint, threads=1)


class Tiny:
    def __init__(self, http: httpx.Client, service) -> None:
        self.http, self.service = http, service
        self.tokenizer = service.served.tokenizer

    def complete(self, prompt, **fields) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": prompt, **fields})

    def chat(self, content, **fields) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.http.base_url}/v1", api_key="x", max_retries=0)


@pytest.fixture(scope="module")
def tiny(checkpoint):
    def ready():
        model = load(checkpoint, threads=1)
        return serve_model(model, load_tokenizer(checkpoint), "tiny", slots=3)

    with serving(ready) as (server, http):
        yield Tiny(http, server._service)


def expected(tiny, model, prompt, max_tokens=60, **sampling) -> tuple[str, str, int]:
    ids = tiny.tokenizer.encode(prompt)
    stream = tiny.tokenizer.stream(ids)
    generation = model.generate(ids, max_tokens=max_tokens, sampling=Sampling(**sampling))
    text = "".join([stream.push(token) for token in generation])
    return text, generation.finish_reason, generation.completion_tokens


def test_served_text_is_the_engines(tiny, alone):
    for sampling in (
        {"temperature": 0},
        {"temperature": 1, "seed": 3},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 4},
        {"temperature": 0, "repetition_penalty": 1.5, "presence_penalty": 1.0},
        {"temperature": 1, "seed": 5, "frequency_penalty": 0.5, "logit_bias": {65: 4.5}},
    ):
        text, reason, tokens = expected(tiny, alone, "Hello", **sampling)
        whole = tiny.complete("Hello", max_tokens=60, **sampling).json()
        choice = whole["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text, reason)
        assert whole["usage"]["completion_tokens"] == tokens
        parts = choices_of(
            chunks_of(tiny.complete("Hello", max_tokens=60, stream=True, **sampling))
        )
        assert "".join(part["text"] for part in parts[0]) == text


def test_whatever_else_is_running(tiny, alone):
    prompts = [f"{number} and so on" for number in range(12)]
    wanted = [
        expected(tiny, alone, prompt, temperature=n % 2, seed=n) for n, prompt in enumerate(prompts)
    ]
    with ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(
                tiny.complete, prompt, max_tokens=60, temperature=n % 2, seed=n, stream=n % 3 == 0
            )
            for n, prompt in enumerate(prompts)
        ]
        for n, (answer, (text, _, _)) in enumerate(zip(asked, wanted, strict=True)):
            if n % 3 == 0:
                parts = choices_of(chunks_of(answer.result()))[0]
                assert "".join(part["text"] for part in parts) == text
            else:
                assert answer.result().json()["choices"][0]["text"] == text


def test_several_answers_are_those_of_their_seeds(tiny, alone):
    answers = tiny.complete("Hello", n=4, seed=11, max_tokens=20).json()
    texts = [choice["text"] for choice in answers["choices"]]
    assert texts == [
        expected(tiny, alone, "Hello", 20, temperature=1, seed=11 + n)[0] for n in range(4)
    ]
    again = tiny.complete("Hello", seed=12, max_tokens=20).json()
    assert again["choices"][0]["text"] == texts[1]
    # The same prompt was just computed.
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 5


def test_scores_of_a_prompt_are_the_engines(tiny, alone):
    text = "Grüße, 世界"
    scores = alone.score(tiny.tokenizer.encode(text)).tolist()
    for max_tokens in (0, 1):
        shown = tiny.complete(text, echo=True, logprobs=2, max_tokens=max_tokens, temperature=0)
        shown = shown.json()["choices"][0]["logprobs"]
        given = shown["token_logprobs"]
        assert given[0] is None
        assert given[1 : len(scores) + 1] == pytest.approx(scores, abs=1e-4)
        assert len(given) == len(scores) + 1 + max_tokens
        for value, top in zip(given[1:], shown["top_logprobs"][1:], strict=True):
            assert value <= max(top.values())
            assert 2 <= len(top) <= 3
    # A greedy token is the most likely one: harnesses compare the two numbers.
    assert given[-1] == max(shown["top_logprobs"][-1].values())


def test_the_end_of_the_text_is_scored(tiny):
    answer = tiny.complete("x", logprobs=1, max_tokens=1, logit_bias={str(END): 100}).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert choice["logprobs"]["tokens"] == ["<end>"]
    assert math.isfinite(choice["logprobs"]["token_logprobs"][0])
    going_on = tiny.complete("x", max_tokens=5, logit_bias={str(END): 100}, ignore_eos=True)
    assert going_on.json()["usage"]["completion_tokens"] == 5


def test_best_of_is_the_most_likely(tiny):
    fields = {"max_tokens": 15, "seed": 2, "logprobs": 0}
    every = tiny.complete("Hello", n=6, **fields).json()["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / 15 for c in every]
    best = tiny.complete("Hello", n=1, best_of=6, **fields).json()["choices"][0]
    assert best["text"] == every[means.index(max(means))]["text"]


def test_answers_fit_a_schema(tiny):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for fields in ({"temperature": 0}, {"n": 4, "seed": 1}):
        answer = tiny.chat(
            "x", response_format=wanted, logit_bias={"32": -100, "10": -100}, **fields
        )
        for choice in answer.json()["choices"]:
            assert choice["finish_reason"] == "stop"
            assert set(json.loads(choice["message"]["content"])) == {"a", "b"}


def test_dense_answers(tiny):
    # A dense model has nothing to switch off.
    fields = {"max_tokens": 20, "temperature": 0}
    dense = tiny.complete("Hello", sparsity=False, **fields)
    assert dense.json()["choices"] == tiny.complete("Hello", **fields).json()["choices"]
    report = tiny.http.get("/v1/sparsity").json()
    assert report["method"] is None
    assert report["active_fraction"] == pytest.approx([1.0, 1.0])


def test_chat_fills_the_context(tiny):
    answer = tiny.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], temperature=0
    )
    assert answer.usage.total_tokens == CONTEXT or answer.choices[0].finish_reason == "stop"


def test_prompt_over_the_context_says_both_counts(tiny):
    for body in ({"prompt": "x" * 200}, {"prompt": [5] * 200}):
        error = check_error(tiny.http.post("/v1/completions", json=body), 400)
        assert "200" in error["message"]
        assert str(CONTEXT) in error["message"]


def test_clients_that_leave_free_their_slots(tiny):
    scheduler = tiny.service.served.scheduler
    for _ in range(10):
        body = {"prompt": "x", "max_tokens": 100, "stream": True, "ignore_eos": True}
        with tiny.http.stream("POST", "/v1/completions", json=body) as answer:
            events = answer.iter_lines()
            next(events)
            answer.close()
    eventually(lambda: scheduler.snapshot().decoding == scheduler.snapshot().waiting == 0)
    assert tiny.service.gate.requests == 0
    assert tiny.service.gate.sequences == 0
    assert tiny.complete("x", max_tokens=3).status_code == 200


def test_a_thresholded_model_is_dense_where_asked(make_sparse, make_model):
    folder = make_sparse(gate_threshold=0.5)
    model, dense = load(folder, threads=1), load(make_model(), threads=1)

    def ready():
        return serve_model(model, load_tokenizer(folder), "tiny", slots=2)

    with serving(ready) as (server, http):
        tiny = Tiny(http, server._service)
        fields = {"max_tokens": 40, "temperature": 0}
        wanted = expected(tiny, dense, "Hello", 40)[0]
        asked = tiny.complete("Hello", sparsity=False, **fields).json()["choices"][0]["text"]
        sparse = tiny.complete("Hello", **fields).json()["choices"][0]["text"]
        assert asked == wanted != sparse
        report = http.get("/v1/sparsity").json()
        assert report["method"] == "test"
        assert 0 < report["neuron_sparsity"] < 1
        assert report["bytes_per_token"] < report["dense_bytes_per_token"]


def test_recall_is_sampled_while_serving(make_model, tmp_path):
    folder = make_model(hidden_act="relu")
    predictor = write_predictor(folder, tmp_path / "predictor")
    plain = ModelSettings(str(folder), threads=1, predictor=predictor)
    fields = {"max_tokens": 21, "temperature": 0, "ignore_eos": True}
    texts = []
    for settings in (plain, replace(plain, sample_recall=4)):
        with serving(settings.load) as (server, http):
            answer = Tiny(http, server._service).complete("Hello", **fields)
            texts.append(answer.json()["choices"][0]["text"])
            report = http.get("/v1/sparsity").json()
            figures = http.get("/metrics").text
    assert texts[0] == texts[1]
    assert report["recall_window_tokens"] == 5  # of 20 steps
    assert all(0 < one < 1 for one in report["predictor_recall"])
    assert "sparseinfer_recall_samples_total 5.0" in figures
    for layer, one in enumerate(report["predictor_recall"]):
        assert f'sparseinfer_predictor_recall{{layer="{layer}"}} {one}' in figures


def test_a_relu_model_has_no_dense_form(make_model):
    folder = make_model(hidden_act="relu")

    def ready():
        return serve_model(load(folder, threads=1), load_tokenizer(folder), "tiny", slots=1)

    with serving(ready) as (server, http):
        error = check_error(Tiny(http, server._service).complete("x", sparsity=False), 400)
        assert error["param"] == "sparsity"
        assert http.get("/v1/sparsity").json()["method"] == "relu"


def test_broken_weights_are_an_error_of_the_request(checkpoint):
    def ready():
        model = load(checkpoint, threads=1)
        with torch.no_grad():
            model._weights.final_norm.fill_(math.nan)
        return serve_model(model, load_tokenizer(checkpoint), "tiny", slots=1)

    with serving(ready) as (server, http):
        for stream in (True, False):
            answer = Tiny(http, server._service).complete("x", stream=stream)
            error = check_error(answer, 500)
            assert error["code"] == "numerical_error"
            assert "NaN" in error["message"]
        assert http.get("/health").status_code == 200
