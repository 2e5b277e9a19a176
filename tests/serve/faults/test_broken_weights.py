"""A checkpoint in which one row is broken: it fails the requests that meet it, and no others."""

from __future__ import annotations

import math
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from safetensors.torch import load_file, save_file

from sparseinfer.engine import load
from sparseinfer.serve import serve_model
from sparseinfer.tokenizer import load_tokenizer

from ..conftest import check_error, serving
from .conftest import ordinary

BAD = "~"
"""The one character whose embedding is broken."""


@pytest.fixture(scope="module", params=[math.nan, math.inf])
def http(request, make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken") / "tiny"
    shutil.copytree(make_model(), folder)
    (token,) = load_tokenizer(folder).encode_plain(BAD)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = request.param
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def ready():
        return serve_model(load(folder, threads=1), load_tokenizer(folder), "tiny", slots=2)

    with serving(ready) as (_, client):
        yield client


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stream": True},
        {"logprobs": 3},
        {"echo": True, "logprobs": 3, "max_tokens": 0},
        {"echo": True, "logprobs": 3, "max_tokens": 2, "stream": True},
        {"n": 3, "temperature": 0},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_500_with_a_reason_and_the_next_is_fine(http, fields):
    fine = ordinary(http)
    body = {"prompt": f"a {BAD} b", "max_tokens": 5, **fields}
    error = check_error(http.post("/v1/completions", json=body), 500)
    assert error["code"] == "numerical_error"
    assert "NaN" in error["message"]
    assert ordinary(http) == fine


def test_those_beside_it_get_their_answers(http):
    fine = ordinary(http)

    def ask(prompt: str) -> httpx.Response:
        return http.post(
            "/v1/completions", json={"prompt": prompt, "max_tokens": 4, "temperature": 0}
        )

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, ["All is", BAD, "All is", f"All is{BAD}", "All is", BAD]))
    assert [it.status_code for it in answers] == [200, 500] * 3
    assert {it.json()["choices"][0]["text"] for it in answers[::2]} == {fine}
