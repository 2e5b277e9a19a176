"""The sample reports."""

from __future__ import annotations

import pytest

from sparseinfer.report import Report

from . import samples


@pytest.fixture(params=["evaluation", "comparison", "finetuning"])
def report(request) -> Report:
    return getattr(samples, request.param)()
