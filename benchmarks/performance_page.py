"""Renders the results part of docs/performance.md and its picture from docs/results/.

    python benchmarks/performance_page.py [--results FOLDER] [--page FILE]

Takes every JSON file there that `sparseinfer bench --report` wrote, with or without `--kernel`;
what stands between the two markers of the page is replaced. Needs matplotlib (the `bench` extra).
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import compress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
PICTURE = "roofline.svg"
PLANE = "plane.svg"
SCHEMA_VERSION = 1

COLOURS = {"bf16": "#1b6ca8", "int8": "#d1711e", "int4": "#3b8f4a"}
MARKERS = {"sparseinfer": "o", "llama.cpp": "s", "transformers": "^", "transformers-compile": "v"}

Result = dict[str, Any]

MARKERS_BY_RULE = {"chess": "o", "sketch": "D"}
STYLES = {"chess": "-", "sketch": "--"}
SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7}

QUALITY = ("recall", "precision", "predicted / true sparsity", "FFN output error")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    args = parser.parse_args()
    results = read_results(args.results)
    if not results:
        print(f"error: no results of `sparseinfer bench` in {args.results}", file=sys.stderr)
        return 1
    models = [one for one in results if one["benchmark"] == "decode"]
    text = args.page.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"error: {args.page} lacks the markers {BEGIN} and {END}", file=sys.stderr)
        return 1
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    sections = results_sections(results)
    if models:
        draw(models, args.page.parent / PICTURE)
        sections.append(
            f"### Roofline\n\n![Tokens per second against bytes read per token]({PICTURE})\n\n"
            "A point on the line reads its bytes at the streaming bandwidth measured in the same "
            "run; filled points are ours, hollow ones baselines."
        )
    planes = [one for one in models if one.get("plane", {}).get("points")]
    if planes:
        draw_planes(planes, args.page.parent / PLANE)
        sections.append(plane_section(planes))
    body = "\n\n".join(sections)
    args.page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", "utf-8")
    return 0


def read_results(folder: Path) -> list[Result]:
    """Reports of `sparseinfer bench` in a folder, by file name; other JSON files are not ours."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        if content.get("benchmark") in ("decode", "gated_ffn"):
            if content["schema_version"] != SCHEMA_VERSION:
                sys.exit(f"error: {path} has schema version {content['schema_version']}")
            found.append(content)
    return found


def results_sections(results: list[Result]) -> list[str]:
    """Markdown: one section per model, one for kernels, one for what is not faster."""
    sections = []
    slower: list[str] = []
    for result in results:
        if result["benchmark"] == "decode":
            sections.append(model_section(result))
            slower += not_faster(result)
    kernels = [one for one in results if one["benchmark"] == "gated_ffn"]
    sections += [kernel_section(one) for one in kernels]
    if slower:
        sections.append("### Where it is not faster\n\n" + "\n".join(f"- {one}" for one in slower))
    return sections


def model_section(result: Result) -> str:
    rules = dict.fromkeys(
        row["rule"] for one in result["formats"] for row in one["rows"] if row.get("rule")
    )
    by = f", by {' and '.join(rules)}" if rules else ""
    lines = [f"### {result['model']['name']}{by}", "", provenance(result), ""]
    if result["model"]["random_weights"]:
        lines += ["Random weights: speed only.", ""]
    lines += decode_table(result)
    lines += chooser_table(result)
    for one in result["formats"]:
        lines += ["", bits_line(one)]
    lines += prefill_table(result)
    lines += batch_table(result)
    lines += [f"\nWarning of the run: {warning}." for warning in result["warnings"]]
    return "\n".join(lines)


def provenance(result: Result) -> str:
    hardware, versions = result["hardware"], result["versions"]
    engines = ("sparseinfer", "torch", "transformers", "llama_cpp_python")
    named = ", ".join(f"{name} {versions[name]}" for name in engines if name in versions)
    settings = result["settings"]
    return (
        f"{result['date']}; {hardware.get('processor', hardware['machine'])}, "
        f"{settings['threads']} threads; {named}; {settings['pairs']} rounds; median (min-max)."
    )


def plane_section(results: list[Result]) -> str:
    """The picture of speed against quality, and what it shows."""
    lines = [
        "### Speed against quality",
        "",
        f"![Perplexity against tokens per second]({PLANE})",
        "",
        "Held-out perplexity and tokens per second of the same run; the line joins llama.cpp's "
        "types, and what lies below or right of it is beyond its frontier. Small numbers are "
        "neuron sparsities.",
    ]
    for result in results:
        lines += ["", f"{result['model']['name']}:", ""]
        lines += [f"- {one}" for one in result["plane"]["findings"]]
    return "\n".join(lines)


def decode_table(result: Result) -> list[str]:
    others = list(
        dict.fromkeys(
            name for one in result["formats"] for row in one["rows"] for name in row["ratios"]
        )
    )
    has_quality = any(row["perplexity"] for one in result["formats"] for row in one["rows"])
    has_rules = any(row.get("rule") for one in result["formats"] for row in one["rows"])
    header = ["weights", "side", "sparsity", *(["of"] if has_rules else []), "tokens/s"]
    header += [*(f"over {name}" for name in others)]
    header += ["bytes allow", "quotient", "GB/s (of streaming)", "neuron / FFN / model sparsity"]
    header += ["perplexity"] * has_quality
    rows = []
    for one in result["formats"]:
        for row in one["rows"]:
            cells = [row["weights"], row["side"], target(row)]
            cells += [row.get("rule") or "-"] * has_rules
            cells.append(spread(row["speed"], 1))
            cells += [spread(row["ratios"].get(name)) for name in others]
            cells += [number(row["predicted"]), number(row["quotient"])]
            cells.append(f"{row['gb_s']:.1f} ({percent(row['bandwidth_fraction'])})")
            cells.append(sparsities(row["sparsities"]))
            cells += [number(row["perplexity"])] * has_quality
            rows.append(cells)
    return markdown(header, rows)


def chooser_table(result: Result) -> list[str]:
    """What predictors and sketches cost, and how good predictors' guesses are."""
    rows = []
    for one in result["formats"]:
        for row in one["rows"]:
            if row.get("chooser"):
                chooser = row["chooser"]
                shares = {part: size / 1e6 for part, size in row["parts"].items()}
                cells = [row["weights"], row["rule"] or "-", target(row)]
                cells += [number(shares[part]) for part in ("predictor", "gate", "up", "down")]
                cells.append(spread(chooser["microseconds"], 0))
                rows.append(cells + quality(chooser["quality"]))
    if not rows:
        return []
    header = ["weights", "of", "sparsity", "predictor MB", "gate MB", "up MB", "down MB"]
    return ["", *markdown([*header, "predictor, us a layer", *QUALITY], rows)]


def quality(found: Result) -> list[str]:
    """Cells under `QUALITY`."""
    if not found:
        return ["-"] * len(QUALITY)
    shares = [percent(found[name]) for name in ("predicted_sparsity", "true_sparsity")]
    error = percent(found["output_error"])
    return [f"{found['recall']:.3f}", f"{found['precision']:.3f}", " / ".join(shares), error]


def bits_line(one: Result) -> str:
    sides = []
    for name, side in one["sides"].items():
        bits = ", ".join(f"{group} {value:.2f}" for group, value in sorted(side["bits"].items()))
        sides.append(f"{name}: {bits}")
    streaming = spread(one["facts"]["streaming_gb_s"], 1)
    return (
        f"{one['weights']}: {one['facts']['steps']} steps per run, streaming {streaming} GB/s; "
        f"bits per weight, {'; '.join(sides)}."
    )


def prefill_table(result: Result) -> list[str]:
    rows = []
    for one in result["formats"]:
        for row in one["prefill"]:
            over = ", ".join(f"{spread(s)} of {name}" for name, s in row["ratios"].items())
            rows.append(
                [one["weights"], row["side"], str(row["tokens"]), spread(row["speed"], 1), over]
            )
    if not rows:
        return []
    return ["", *markdown(["weights", "side", "prompt tokens", "tokens/s", "ratio"], rows)]


def batch_table(result: Result) -> list[str]:
    rows = []
    for one in result["formats"]:
        for row in one["batch"]:
            over = ", ".join(f"{spread(s)} of {name}" for name, s in row["ratios"].items())
            state = target(row) + (f" of {row['rule']}" if row.get("rule") else "")
            cells = [one["weights"], row["side"], state, str(row["batch"])]
            rows.append([*cells, spread(row["speed"], 1), over])
    if not rows:
        return []
    header = ["weights", "side", "sparsity", "batch", "tokens/s in all", "ratio"]
    return ["", *markdown(header, rows)]


def kernel_section(result: Result) -> str:
    rows = [
        [
            f"{row['shape']} ({row['hidden']} x {row['intermediate']})",
            row["weights"],
            f"{row['sparsity']:g}" + (f" of {row['rule']}" if row.get("rule") else ""),
            spread(row["gb_s"], 1),
            spread(row["streaming_gb_s"], 1),
            spread(row["bandwidth_fraction"]),
            spread(row.get("over_dense")),
            number(row.get("predicted")),
            spread(row.get("chooser_microseconds"), 0),
            *quality(row.get("quality") or {}),
        ]
        for row in result["rows"]
    ]
    header = ["shape", "weights", "sparsity", "GB/s on bytes read", "streaming GB/s", "fraction"]
    header += ["over dense", "bytes allow", "predictor, us", *QUALITY]
    return "\n".join(
        ["### The gated FFN alone", "", provenance(result), "", *markdown(*filled(header, rows))]
    )


def not_faster(result: Result) -> list[str]:
    """Every median ratio below 1, and sparsity that saves less than the bytes it saves."""
    name = result["model"]["name"]
    found = []
    for one in result["formats"]:
        for row in one["rows"]:
            of = f" of {row['rule']}" if row.get("rule") else ""
            where = f"{name}, {one['weights']}, sparsity {target(row)}{of}"
            found += [
                f"{where}: {spread(ratio)} of the speed of {other}"
                for other, ratio in row["ratios"].items()
                if ratio["median"] < 1
            ]
        for row in one["prefill"]:
            found += [
                f"{name}, {one['weights']}, prompt: {spread(ratio)} of the speed of {other}"
                for other, ratio in row["ratios"].items()
                if ratio["median"] < 1
            ]
    return found


def draw(results: list[Result], path: Path) -> None:
    """Tokens per second over bytes per token, both logarithmic, one panel per model."""
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(results), figsize=(5.2 * len(results), 4.2), squeeze=False, layout="constrained"
    )
    for axis, result in zip(axes[0], results, strict=True):
        points = [
            (megabytes(row), row["speed"]["median"], row, one["weights"])
            for one in result["formats"]
            for row in one["rows"]
        ]
        limits = [0.8 * min(point[0] for point in points), 1.25 * max(point[0] for point in points)]
        for one in result["formats"]:
            bandwidth = 1e3 * one["facts"]["streaming_gb_s"]["median"]
            speeds = [bandwidth / limit for limit in limits]
            axis.plot(limits, speeds, color=COLOURS[one["weights"]], linewidth=0.8)
        for size, speed, row, weights in points:
            ours = row["side"] == "sparseinfer"
            axis.plot(
                size,
                speed,
                MARKERS.get(row["side"], "D"),
                color=COLOURS[weights],
                fillstyle="full" if ours else "none",
            )
            label = row["side"]
            if ours:
                of = f"{row['rule']} " if row.get("rule") else ""
                label = "dense" if row["target"] == 0 else of + target(row)
            # Ours above their points, baselines below: they often lie on each other.
            offset, side = ((4, 4), "left") if ours else ((-5, -9), "right")
            axis.annotate(
                label, (size, speed), offset, textcoords="offset points", fontsize=7, ha=side
            )
        axis.set(xscale="log", yscale="log", title=result["model"]["name"])
        axis.set(xlabel="MB read per token", ylabel="tokens per second")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter("{x:g}")
            scale.set_minor_formatter("{x:g}")
            scale.set_tick_params(which="both", labelsize=7)
        for weights in (one["weights"] for one in result["formats"]):
            axis.plot([], [], "o", color=COLOURS[weights], label=weights)
        axis.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_planes(results: list[Result], path: Path) -> None:
    """Perplexity (logarithmic) over tokens per second, one panel per model: a line for each format
    and rule, from dense to its sparsest, and llama.cpp's types."""
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(results), figsize=(9.0 * len(results), 5.4), squeeze=False, layout="constrained"
    )
    for axis, result in zip(axes[0], results, strict=True):
        points = result["plane"]["points"]
        theirs = sorted((p["speed"], p["perplexity"], p["name"]) for p in points if not p["ours"])
        stairs = ([one[0] for one in theirs], [one[1] for one in theirs])
        axis.step(*stairs, "s-", where="pre", color="#777777", linewidth=0.8,
                  fillstyle="none", label="llama.cpp")  # fmt: skip
        for speed, perplexity, name in theirs:
            label = name.removeprefix("llama.cpp ")
            axis.annotate(label, (speed, perplexity), (5, -10), **SMALL, color="#555555")
        for (weights, rule), line in families(points).items():
            colour = COLOURS.get(weights, "#777777")
            where = ([p["speed"] for p in line], [p["perplexity"] for p in line])
            axis.plot(*where, MARKERS_BY_RULE.get(rule, "^") + STYLES.get(rule, "-"), color=colour,
                      linewidth=0.9, markersize=5, label=f"{weights} {rule}")  # fmt: skip
            for point in line:
                sparsity = point["name"].rpartition(" ")[2]
                if sparsity == "dense" and rule == "sketch":  # labelled by another line
                    continue
                above = (-3, 6) if rule != "sketch" else (3, -11)
                axis.annotate(sparsity, (point["speed"], point["perplexity"]), above, **SMALL,
                              color=colour)  # fmt: skip
        axis.margins(x=0.08, y=0.08)
        axis.set(yscale="log", title=result["model"]["name"])
        axis.set(xlabel="tokens per second", ylabel="perplexity")
        axis.legend(fontsize=8, loc="upper left")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter("{x:g}")
            scale.set_minor_formatter("{x:g}")
            scale.set_tick_params(which="both", labelsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def families(points: list[Result]) -> dict[tuple[str, str], list[Result]]:
    """(format, rule) -> our points of it, dense first."""
    found: dict[tuple[str, str], list[Result]] = {}
    dense = {}
    for point in (one for one in points if one["ours"]):
        weights, *rule, _ = point["name"].split(" ")
        if point["name"].endswith(" dense"):
            dense[weights] = point
        else:
            found.setdefault((weights, rule[0] if rule else "own"), []).append(point)
    for weights, point in dense.items():
        lines = [line for key, line in found.items() if key[0] == weights]
        for line in lines:
            line.insert(0, point)
        if not lines:
            found[weights, "dense"] = [point]
    return found


def pyplot() -> Any:
    """Matplotlib's, drawing the same file from the same results."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sparseinfer"
    import matplotlib.pyplot as plt

    return plt


def megabytes(row: Result) -> float:
    """Read for one token: weights, keys and values."""
    return (row["weight_bytes"] + row["kv_bytes"]) / 1e6


def filled(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the columns that say nothing in any row."""
    says = [any(row[column] != "-" for row in rows) for column in range(len(header))]
    return list(compress(header, says)), [list(compress(row, says)) for row in rows]


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def target(row: Result) -> str:
    found = row["target"]
    return "-" if found is None else found if isinstance(found, str) else f"{found:g}"


def sparsities(found: Result | None) -> str:
    if found is None:
        return "-"
    return " / ".join(percent(found[name]) for name in ("neuron", "ffn_bytes", "model_bytes"))


def spread(found: Result | None, digits: int = 2) -> str:
    if found is None:
        return "-"
    return f"{found['median']:.{digits}f} ({found['min']:.{digits}f}-{found['max']:.{digits}f})"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


if __name__ == "__main__":
    sys.exit(main())
