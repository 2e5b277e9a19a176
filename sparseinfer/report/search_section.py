"""How a quality budget was met: every candidate, and the one that was kept."""

from __future__ import annotations

from sparseinfer.report.cells import Cell, count, percent, quantity, ratio
from sparseinfer.report.document import Figure, Section, gallery, table
from sparseinfer.report.parts import Search
from sparseinfer.report.scatter import Point, Series, scatter, scatter_legend
from sparseinfer.report.shared_sections import interval_cell
from sparseinfer.report.svg import Axis, Scale, number_tick, percent_tick


def search_section(search: Search) -> Section:
    """A picture of the candidates by allocation, and the trace."""
    kept = search.steps[search.chosen]
    facts: list[tuple[str, Cell]] = [
        ("allowed rise of perplexity", percent(search.budget)),
        ("searched on", search.text),
        ("tokens", count(search.tokens)),
        ("allocation kept", kept.allocation),
        ("model byte sparsity", percent(kept.model_bytes)),
        ("ratio to dense", ratio(kept.perplexity_ratio)),
    ]
    if search.check is not None:
        facts += [
            ("checked on", search.check.text),
            ("ratio there", ratio(search.check.perplexity_ratio)),
        ]
        if search.check.ratio_interval is not None:
            facts.append(("interval there", interval_cell(search.check.ratio_interval)))
    rows = [
        (
            step.allocation,
            quantity(step.parameter),
            percent(step.model_bytes),
            ratio(step.perplexity_ratio),
            "kept" if index == search.chosen else "",
        )
        for index, step in enumerate(search.steps)
    ]
    columns = ("allocation", "parameter", "model byte sparsity", "ratio to dense", "result")
    return Section(
        "Search",
        (
            *gallery(_figures(search)),
            table("Budget", ("what", "value"), facts),
            table("Candidates in order", columns, rows, folded=True),
        ),
    )


def _figures(search: Search) -> tuple[Figure, ...]:
    series = []
    for place, allocation in enumerate(dict.fromkeys(step.allocation for step in search.steps)):
        points = tuple(
            Point(
                step.model_bytes,
                step.perplexity_ratio,
                ("kept",) if index == search.chosen else (),
                f"{allocation}: ratio {ratio(step.perplexity_ratio).text} at model byte sparsity "
                f"{percent(step.model_bytes).text}",
            )
            for index, step in enumerate(search.steps)
            if step.allocation == allocation and step.perplexity_ratio is not None
        )
        series.append(Series(place, allocation, points))
    found = [point for one in series for point in one.points]
    if not found:
        return ()
    level = 1 + search.budget
    title = "Candidates of the search"
    x = Axis("model byte sparsity", Scale.around([p.x for p in found]), percent_tick)
    y = Axis(
        "perplexity / dense",
        Scale.around([level, *(p.y for p in found)], log=True),
        number_tick,
    )
    drawn = scatter(title, x, y, series, best="low", level=level, height=260)
    note = "The dashed line is the budget; filled points are beaten by no other."
    return (Figure(title, drawn, scatter_legend(series), note),)
