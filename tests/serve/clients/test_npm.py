"""The openai package for Node against the real engine."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).parents[1] / "npm"


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """A folder with the package installed as locked."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}; .ci/run installs Debian's")
    folder = tmp_path_factory.mktemp("npm") / "client"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-update-notifier"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def seen(package, writer) -> dict[str, Any]:
    """All that the script of the package saw of the server."""
    command = ["node", "chat.mjs", f"{writer.url}/v1", "tiny"]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def text_of(chunks: list[dict], index: int = 0) -> str:
    deltas = [c["delta"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_models(seen):
    assert seen["models"] == ["tiny"]


def test_stream_is_the_answer_that_python_gets(seen, writer):
    answer = writer.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "é€"}],
        max_completion_tokens=40,
        temperature=1,
        seed=9,
    ).choices[0]
    whole = seen["whole"]["choices"][0]
    assert whole["message"]["content"] == answer.message.content
    assert whole["finish_reason"] == answer.finish_reason
    chunks = seen["chunks"]
    assert text_of(chunks) == answer.message.content
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == answer.finish_reason
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == seen["whole"]["usage"]["total_tokens"]


def test_the_packages_own_reading_of_a_stream(seen):
    followed = seen["followed"]
    choice = followed["final"]["choices"][0]
    assert "".join(followed["deltas"]) == choice["message"]["content"]
    assert choice["message"]["content"] == text_of(seen["chunks"])
    entries = choice["logprobs"]["content"]
    content = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert content.decode(errors="ignore") == choice["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_several_answers_in_one_stream(seen):
    texts = {index: text_of(seen["several"], index) for index in (0, 1)}
    assert texts[0] == text_of(seen["chunks"])
    assert texts[1] not in ("", texts[0])
    endings = defaultdict(list)
    for chunk in seen["several"]:
        for choice in chunk["choices"]:
            endings[choice["index"]].append(choice["finish_reason"])
    assert sorted(endings) == [0, 1]
    assert all(found[-1] for found in endings.values())


def test_tools(seen):
    choice = seen["called"]["final"]["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "now"
    assert json.loads(call["function"]["arguments"]) == {}


def test_leaving_a_stream_and_what_is_refused(seen, writer):
    assert seen["aborted"] == "chat.completion.chunk"
    assert seen["refused"] == {"kind": "BadRequestError", "status": 400, "param": "top_p"}
    assert writer.http.get("/health").status_code == 200


def test_lock_file_names_no_registry():
    locked = json.loads((SOURCES / "package-lock.json").read_text("utf-8"))["packages"]
    assert all("resolved" not in entry for entry in locked.values())
    assert all("integrity" in entry for name, entry in locked.items() if name)
