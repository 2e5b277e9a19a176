"""docs/serving.md names everything that there is, with the defaults that there are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import typer

from sparseinfer.cli.app import app as commands
from sparseinfer.engine.recall import Recall
from sparseinfer.serve import Limits, create_app, limits, schema
from sparseinfer.serve.metrics import Metrics

from .scripted import ScriptedScheduler, scripted

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
REQUESTS = (
    schema.CompletionRequest,
    schema.ChatRequest,
    schema.TokenizeRequest,
    schema.DetokenizeRequest,
)


def row(start: str) -> list[str]:
    """The cells of the line of a table that begins with this."""
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| {start}")]
    assert len(lines) == 1, f"{start}: {len(lines)} rows"
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def options() -> dict[str, object]:
    """Options that `sparseinfer serve --help` lists -> their defaults."""
    command = typer.main.get_command(commands).commands["serve"]
    shown = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    return {one.opts[0]: one.default for one in shown}


@pytest.mark.parametrize("name", options())
def test_options(name):
    if name == "--help":
        return
    default, said = options()[name], row(f"`{name}`")[1]
    if default in (None, False):
        # Nothing, or words: "the model's".
        assert not re.search(r"\d", said)
    else:
        assert said == str(default).removesuffix(".0")


def test_no_option_is_made_up():
    # Those of other commands, and the one that there is not on purpose.
    others = {"--model", "--tasks", "--model_args", "--batch_size", "--only", "--api-key"}
    others |= {"--no-deps", "--no-install-recommends", "--no-cache-dir", "--extra-index-url"}
    others |= {"--from", "--rm", "--create-home", "--start-period"}
    assert set(re.findall(r"--[a-z][a-z_-]+", PAGE)) - others <= {*options(), "--help"}


@pytest.mark.parametrize("field", dataclasses.fields(Limits), ids=lambda field: field.name)
def test_limits(field):
    (line,) = [line for line in PAGE.splitlines() if f"(`{field.name}`)" in line]
    assert line.split("|")[2].strip() == f"{field.default:.0f}"


@pytest.mark.parametrize("name", [name for name in vars(limits) if name.isupper()])
def test_fixed_limits(name):
    value = getattr(limits, name)
    if name.startswith("_") or name == "RETRY_AFTER_SECONDS":
        return
    said = str(value).removesuffix(".0")
    assert re.search(rf"(?<![\d.]){re.escape(said)}(?!\d)", PAGE), said


def test_metrics():
    metrics, scheduler = Metrics(), ScriptedScheduler()
    scheduler.recall = Recall(1, 1, (1, 1), (1, 1))
    metrics.watch(scripted(scheduler))
    for family in metrics.registry.collect():
        name = family.name.removeprefix("sparseinfer_")
        name += "_total" if family.type == "counter" else ""
        assert f"`{name}`" in PAGE, name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        for label in labels:
            assert label in row(f"`{name}`")[1]


def test_routes():
    for route in create_app(lambda: scripted(ScriptedScheduler())).routes:
        path = getattr(route, "path", "").replace(":path", "")
        assert f"{path}`" in PAGE or f"{path}/" in PAGE, path


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda kind: kind.__name__)
def test_fields(request_type):
    for name in (*request_type.model_fields, *request_type.neutral):
        assert f"`{name}`" in PAGE, name


def test_codes_of_errors():
    sources = (ROOT / "sparseinfer" / "serve").rglob("*.py")
    codes = {code for path in sources for code in re.findall(r'code="(\w+)"', path.read_text())}
    assert len(codes) > 10
    for code in codes:
        assert f"`{code}`" in PAGE, code


def test_the_readme_leads_here():
    assert "(docs/serving.md)" in (ROOT / "README.md").read_text("utf-8")
