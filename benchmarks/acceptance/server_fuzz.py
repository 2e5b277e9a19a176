"""Requests that schemathesis makes of the server's own OpenAPI document: none may break it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import APIOperation, Case, GenerationMode

from acceptance.figure import Figure, at_least, at_most
from acceptance.server_process import server_process
from acceptance.small_model import write_small_model

CASES = 2000
_SEED = 20260722
_SECONDS = 120
"""For one answer: that a request takes for ever is a fault too."""
_WEIGHTS = {"/v1/completions": 6, "/v1/chat/completions": 8, "/tokenize": 3, "/detokenize": 2}
"""Of the routes in how many cases each gets; others: 1."""
_ORDINARY: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [40, 41]},
}
"""What must be right for the other fields to matter."""
_FEW_TOKENS = 16
"""Where a request does not say how many, so that not each fills the context."""


@dataclass
class Fuzzing:
    """What came of it."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """One line for each answer that was none, and each 5xx."""


def fuzz(url: str, cases: int) -> Fuzzing:
    """Sends `cases` requests or a few more to a server, the same ones every time: of those with a
    body a third that do not fit the document, a third that do, which is not enough for an answer,
    and a third whose prompt and model are made ordinary ones."""
    document = httpx.get(f"{url}/openapi.json", timeout=60).json()
    operations = [it.ok() for it in schemathesis.openapi.from_dict(document).get_all_operations()]
    # One without parameters has but one request that fits, and none that does not.
    plain = [it for it in operations if not (it.body or it.path_parameters or it.query)]
    others = [it for it in operations if it not in plain]
    found = Fuzzing()
    with requests.Session() as session:
        send = _sender(found, session, url)
        for operation in plain:
            send(operation.Case())
        kinds = [(it, made) for it in others for made in _strategies(it)]
        weights = [_WEIGHTS.get(it.path, 1) for it, _ in kinds]
        for (_, made), weight in zip(kinds, weights, strict=True):
            _run(made, -(-(cases - len(plain)) * weight // sum(weights)), send)
    return found


def server_fuzz(work: Path) -> list[Figure]:
    """At full size, on a small random model with a real tokenizer and chat template."""
    model = write_small_model(work / "small")
    with server_process(model, "--context", "256") as server:
        found = fuzz(server.url, CASES)
        healthy = httpx.post(
            f"{server.url}/v1/completions", json={"prompt": "Hello", "max_tokens": 4}, timeout=60
        )
    by_status = ", ".join(f"{count} x {status}" for status, count in sorted(found.statuses.items()))
    detail = "; ".join([by_status, *found.faults[:3]])
    return [
        at_least("server: cases made of its OpenAPI document", found.cases, CASES, by_status),
        at_most("server: of these, 5xx and none at all", len(found.faults), 0, detail),
        at_most("server: status of a request after them", healthy.status_code, 200),
    ]


def _strategies(operation: APIOperation) -> list[SearchStrategy[Case]]:
    fitting = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not operation.body:  # whatever stands in an address fits it
        return [fitting]
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    return [wrong, fitting, fitting.map(_eased)]


def _eased(case: Case) -> Case:
    """Makes what is in every request ordinary, and 1.0, which fits an integer too, 1."""
    if isinstance(case.body, dict):
        body = {name: _whole(value) for name, value in case.body.items() if name != "model"}
        if case.path.startswith("/v1/") and "max_completion_tokens" not in body:
            body.setdefault("max_tokens", _FEW_TOKENS)
        case.body = body | _ORDINARY.get(case.path, {})
    return case


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sender(found: Fuzzing, session: requests.Session, url: str) -> Callable[[Case], None]:
    def send(case: Case) -> None:
        found.cases += 1
        what = f"{case.method} {case.path}"
        try:
            answer = session.request(**case.as_transport_kwargs(base_url=url), timeout=_SECONDS)
        except requests.RequestException as error:
            found.faults.append(f"{what}: {error!r:.200} for {_shown(case)}")
            return
        found.statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            found.faults.append(f"{what}: {answer.status_code} for {_shown(case)}")
        elif answer.status_code >= 400 and case.method != "HEAD":
            # OpenAI's shape, whatever was wrong.
            error = answer.json()["error"]
            if set(error) != {"message", "type", "param", "code"}:
                found.faults.append(f"{what}: error without its fields for {_shown(case)}")

    return send


def _run(cases: SearchStrategy[Case], count: int, send: Callable[[Case], None]) -> None:
    """Draws that many cases."""

    @seed(_SEED)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def each(case: Case) -> None:
        send(case)

    each()


def _shown(case: Case) -> str:
    return f"{case.body!r:.300} {case.path_parameters!r:.100} {case.query!r:.100}"
