"""Rows to table, JSON, plot and Markdown. Timing is in bench/common.py.

`python -m bench.report docs/benchmarks.md README.md` rewrites the text between `<!-- bench:full -->` or
`<!-- bench:short -->` and `<!-- bench:end -->` in those files from the committed bench/results/*.json.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import common

RESULTS = Path(__file__).resolve().parent / "results"


def ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def times(ratio: float) -> str:
    return f"{ratio:.{1 if ratio >= 10 else 2}f}x"


def geometric_means(rows: list[common.Row]) -> list[tuple[common.Group, str, float, float]]:
    """(group, device, geometric mean of the ratios to the first peer, worst ratio) for every group."""
    ratios: dict[tuple[str, float, float | None, str], list[float]] = {}
    for row in rows:
        if row.group and row.ratios:
            key = (row.group["name"], row.group["target"], row.group["worst"], row.device)
            ratios.setdefault(key, []).append(next(iter(row.ratios.values())))
    return [
        (common.Group(*key[:3]), key[3], math.exp(sum(map(math.log, found)) / len(found)), min(found))
        for key, found in ratios.items()
    ]


def members_of(rows: list[common.Row], group: common.Group, device: str) -> list[common.Row]:
    return [
        row for row in rows if row.group and row.group["name"] == group.name and row.device == device and row.ratios
    ]


def target_of(row: common.Row) -> str:
    """Targets are about the CPU."""
    return f"{row.target:g}x" if row.target and row.device == "cpu" else "-"


def cells(row: common.Row) -> list[str]:
    low, high = row.cvops_iqr
    return [
        row.op,
        row.name + (" (GPU)" if row.device == "cuda" else ""),
        f"{ms(row.cvops_ms)} [{ms(low)}..{ms(high)}]" + (" ?" if row.disturbed else ""),
        "; ".join(f"{name} {ms(value)}" for name, value in row.peers_ms.items()) or "-",
        "; ".join(map(times, row.ratios.values())) or "-",
        "; ".join(map(times, row.best_ratios.values())) or "-",
        target_of(row),
        ms(row.floor_ms),
        f"{row.cvops_ms / row.floor_ms:.1f}" if row.floor_ms else "-",
    ]


HEADER = ["op", "case", "cvops ms [quartiles]", "peer ms", "ratio", "of best rounds", "target", "floor ms", "floors"]


def group_lines(rows: list[common.Row]) -> list[str]:
    return [
        f"{group.name}: geometric mean {times(mean)} (target {group.target:g}x), worst {times(worst)}"
        + (f" (target {group.worst:g}x)" if group.worst else "")
        if device == "cpu"
        else f"{group.name} (GPU): geometric mean {times(mean)}, worst {times(worst)}"
        for group, device, mean, worst in geometric_means(rows)
    ]


def table(rows: list[common.Row]) -> str:
    """Plain text, for a terminal."""
    lines = [HEADER, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, *group_lines(rows)])


def markdown(rows: list[common.Row]) -> str:
    """The whole table."""
    lines = [HEADER, ["---"] * len(HEADER), *map(cells, rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([text, "", *(f"- {line}" for line in group_lines(rows))])


def markdown_short(rows: list[common.Row]) -> str:
    """One line per target: cases that have one of their own, and groups by their geometric mean."""
    lines = ["| case | peer | ratio | target |", "|---|---|---|---|"]
    for row in rows:
        if row.target and row.ratios:
            peer, ratio = next(iter(row.ratios.items()))
            where = " (GPU)" if row.device == "cuda" else ""
            lines.append(f"| {row.op} {row.name}{where} | {peer} | {times(ratio)} | {target_of(row)} |")
    for group, device, mean, worst in geometric_means(rows):
        peers = ", ".join(sorted({next(iter(row.ratios)) for row in members_of(rows, group, device)}))
        measured = f"{times(mean)} mean, {times(worst)} worst"
        where, target = (" (GPU)", "-") if device == "cuda" else ("", f"{group.target:g}x mean")
        lines.append(f"| {group.name}{where} | {peers} | {measured} | {target} |")
    return "\n".join(lines)


def load(file: Path) -> tuple[dict[str, Any], list[common.Row]]:
    """A results file, also one of an earlier version: fields that are no longer known are left out."""
    data = json.loads(file.read_text())
    known = common.Row.__dataclass_fields__
    rows = [common.Row(**{key: value for key, value in row.items() if key in known}) for row in data["rows"]]
    return data["machine"], rows


def results_file() -> Path:
    """Of this machine: bench/results/<machine>.json."""
    return RESULTS / f"{common.machine_slug(common.machine())}.json"


def save(rows: list[common.Row]) -> None:
    """Merges the rows into this machine's results: a partial run replaces only its own rows."""
    facts = common.machine() | {"date": datetime.date.today().isoformat()}
    file = results_file()
    merged = {}
    if file.is_file():
        merged = {(row.op, row.name, row.device): row for row in load(file)[1]}
    merged |= {(row.op, row.name, row.device): row for row in rows}
    ordered = sorted(merged.values(), key=lambda row: row.op)
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps({"machine": facts, "rows": [asdict(row) for row in ordered]}, indent=1) + "\n")


def bars(rows: list[common.Row]) -> list[tuple[str, str, float, float | None, list[float]]]:
    """(op, label, ratio to the first peer, target, all ratios): one per case, and one mean per group."""
    found: list[tuple[str, str, float, float | None, list[float]]] = []
    for row in rows:
        if row.ratios and not row.group:
            ratio = next(iter(row.ratios.values()))
            gpu = " (GPU)" if row.device == "cuda" else ""
            found.append(
                (
                    row.op,
                    f"{row.op}  {row.name.removeprefix(row.op).strip()}{gpu}",
                    ratio,
                    None if gpu else row.target,
                    [ratio],
                )
            )
    for group, device, mean, _worst in geometric_means(rows):
        members = members_of(rows, group, device)
        ratios = [next(iter(r.ratios.values())) for r in members]
        gpu = " (GPU)" if device == "cuda" else ""
        target = None if gpu else group.target
        found.append((members[0].op, f"{group.name}, mean of {len(ratios)}{gpu}", mean, target, ratios))
    return found


def plot(results: Path) -> Path:
    """Horizontal bars of the ratio to the first peer, on a log axis, targets as ticks, groups with their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    facts, rows = load(results)
    shown = bars(rows)
    ops = list(dict.fromkeys(op for op, *_ in shown))
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.28 * len(shown)), layout="constrained")
    for place, (op, _label, ratio, target, ratios) in enumerate(shown):
        axes.barh(place, ratio - 1, left=1, color=plt.get_cmap("tab10")(ops.index(op) % 10), height=0.72)
        if len(ratios) > 1:
            axes.plot([min(ratios), max(ratios)], [place] * 2, color="black", linewidth=0.9, marker="|")
        axes.text(max(*ratios, ratio, target or 1, 1) * 1.06, place, times(ratio), va="center", fontsize=8)
        if target:
            axes.plot([target] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2.2)
    every = [r for *_, ratios in shown for r in ratios] or [1.0]
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, 0.9 * min(every)), max(2, *every) * 1.6)
    ticks = [t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(shown)), [label for _op, label, *_ in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("times faster than the peer (log). Tall tick: target. Thin line: range of the group.")
    axes.set_title(f"{facts.get('gpu', facts['cpu'])}, {facts['threads']} threads, torch {facts['torch']}", fontsize=10)
    file = results.with_suffix(".png")
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def main(documents: list[str]) -> None:
    parts = {"full": "", "short": ""}
    results = {file: load(file) for file in sorted(RESULTS.glob("*.json"))}
    for file, (facts, rows) in sorted(results.items(), key=lambda one: one[1][0]["date"], reverse=True):
        head = ", ".join(f"{key} {value}" for key, value in facts.items())
        parts["full"] += f"\n### {head}\n\n{markdown(rows)}\n\n![ratios](../bench/results/{file.stem}.png)\n"
        parts["short"] += f"\n{head}:\n\n{markdown_short(rows)}\n"
    for document in documents:
        text = Path(document).read_text()
        for name, part in parts.items():
            pattern = rf"(<!-- bench:{name} -->\n).*?(<!-- bench:end -->)"
            text = re.sub(pattern, lambda m, part=part: m[1] + part + "\n" + m[2], text, flags=re.S)
        Path(document).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
