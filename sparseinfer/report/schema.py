"""The published JSON Schema, docs/report.schema.json, made from the models."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, TypeAdapter

from sparseinfer.report.comparison import ComparisonReport
from sparseinfer.report.evaluation import EvaluationReport
from sparseinfer.report.finetuning import FinetuningReport

Report = EvaluationReport | ComparisonReport | FinetuningReport


def schema_text() -> str:
    """JSON Schema (draft 2020-12) of report.json, of every kind."""
    adapter = TypeAdapter(Annotated[Report, Field(discriminator="kind")])
    schema = adapter.json_schema(mode="serialization")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sparseinfer report",
    }
    return json.dumps(head | schema, indent=2) + "\n"
