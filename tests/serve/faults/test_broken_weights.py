"""A checkpoint that overflows on one character: it fails the requests that meet it, and no others.

One that holds NaN itself is refused when it is loaded.
"""

from __future__ import annotations

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
"""The one character that turns on what is too large."""


@pytest.fixture(scope="module")
def http(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken") / "tiny"
    shutil.copytree(make_model(), folder)
    (token,) = load_tokenizer(folder).encode_plain(BAD)
    weights = load_file(folder / "model.safetensors")
    # Input 0 is 0 up to the first FFN but for that character.
    weights["model.embed_tokens.weight"][:, 0] = 0
    weights["model.embed_tokens.weight"][token, 0] = 100
    weights["model.layers.0.self_attn.o_proj.weight"][0] = 0
    for name in ("gate_proj", "up_proj"):
        weights[f"model.layers.0.mlp.{name}.weight"][0, 0] = 1e30
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
