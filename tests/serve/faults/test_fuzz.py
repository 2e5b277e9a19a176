"""What schemathesis makes of the OpenAPI document; `make accept` does 20 times as many."""

from __future__ import annotations

CASES = 100


def test_nothing_breaks_the_server(acceptance, target):
    found = acceptance["server_fuzz"].fuzz(target.process.url, CASES)
    assert found.faults == []
    assert found.cases >= CASES
    # Neither all refused nor all answered: both ways are tried.
    assert found.statuses[200] >= 10
    assert found.statuses[400] >= 10
