"""Pictures of a run, as SVG and PNG. `python benchmarks/plots.py` draws the published run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from stats import median, percentile
from tables import Found, column

mpl.use("Agg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "atomiclock",
        "svg.fonttype": "none",
        "font.size": 8.5,
        "font.family": "sans-serif",
        "axes.spines.top": False,
    }
    | {"axes.spines.right": False, "axes.axisbelow": True, "savefig.bbox": "tight", "figure.facecolor": "white"}
)

OURS, OTHERS, RAW = "#0b6e4f", "#9aa5b1", "#4a5568"
NETWORK = ("redis", "redis, asyncio", "memcached", "memcached, asyncio", "etcd", "etcd, asyncio")
GROUPS = (*NETWORK, "file", "file, asyncio")
HERE = Path(__file__).parent
FARTHEST = 5
"""Where the bars of S1 are cut off."""


def _colour(name: str) -> str:
    return OURS if name.startswith("atomiclock") else RAW if name.startswith("raw") else OTHERS


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_xlim()
    if high / low < 30:
        axes.set_xlim(low / 3, high * 3)


def _panels(groups: list[str], height: float) -> tuple[Any, dict[str, Axes]]:
    columns = 2
    rows = (len(groups) + columns - 1) // columns
    figure, axes = plt.subplots(rows, columns, figsize=(9.5, height * rows), squeeze=False)
    flat = list(axes.flat)
    for spare in flat[len(groups) :]:
        spare.set_visible(False)
    return figure, dict(zip(groups, flat, strict=False))


def cycles(found: Found) -> Any:
    """S1, relative to the raw client."""
    table = {group: rows for group, rows in found.get("S1", {}).items() if group in NETWORK}
    if not table:
        return None
    figure, panels = _panels(list(table), 2.3)
    for group, axes in panels.items():
        base = next((name for name in table[group] if name.startswith("raw")), next(iter(table[group])))
        ground = median(table[group][base])
        rows = sorted(table[group].items(), key=lambda item: -median(item[1]))
        for at, (name, values) in enumerate(rows):
            middle = median(values) / ground
            low, high = percentile(values, 25) / ground, percentile(values, 75) / ground
            axes.barh(at, middle, color=_colour(name), xerr=[[middle - low], [high - middle]], error_kw={"lw": 0.8})
            end = min(high, FARTHEST)
            axes.annotate(
                f" {middle:.0f} →" if middle > FARTHEST else f" {middle:.2f}", (end, at), va="center", fontsize=7.5
            )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_xlim(0, FARTHEST)
        axes.axvline(1, color="black", lw=0.6)
        axes.set_title(group, loc="left", fontweight="bold")
    figure.suptitle(
        "Acquire + release, uncontended: time relative to the raw client (shorter is better)", x=0.02, ha="left"
    )
    return figure


def handoff(found: Found) -> Any:
    """S2: p50 and p99."""
    table = {group: rows for group, rows in found.get("S2, 2 processes", {}).items() if group in GROUPS}
    if not table:
        return None
    figure, panels = _panels(list(table), 1.9)
    for group, axes in panels.items():
        every = {name: [1000 * value for values in rounds for value in values] for name, rounds in table[group].items()}
        rows = sorted(((name, values) for name, values in every.items() if values), key=lambda item: -median(item[1]))
        for at, (name, values) in enumerate(rows):
            half, most = median(values), percentile(values, 99)
            axes.plot([half, most], [at, at], color=_colour(name), lw=1.2)
            axes.plot(half, at, "o", color=_colour(name), ms=5)
            axes.plot(most, at, "|", color=_colour(name), ms=9, mew=1.5)
            axes.annotate(
                f"{half:.0f}" if half >= 10 else f"{half:.2g}",
                (half, at),
                textcoords="offset points",
                xytext=(0, 5),
                ha="center",
                fontsize=7,
            )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.2)
        _logarithmic(axes)
        axes.set_xlim(0.2, 2000)
        axes.set_title(group, loc="left", fontweight="bold")
    figure.suptitle(
        "From release() in one process to acquire() in another, ms: p50 (dot) to p99 (bar)", x=0.02, ha="left"
    )
    return figure


CROWDS = {
    "S3, 10 threads": ("o", "10 threads or tasks"),
    "S3, 8 processes": ("s", "8 processes"),
    "S3, 100 threads": ("^", "100 threads or tasks"),
}


def requests(found: Found) -> Any:
    """S3: requests to the store for each handoff."""
    return _dots(found, NETWORK, "requests_per_change", "Requests to the store for each change of the owner", log=True)


def owners(found: Found) -> Any:
    """S3: owner changes per second."""
    return _dots(found, GROUPS, "changes", "Changes of the owner per second", log=True)


def fairness(found: Found) -> Any:
    """S3: Jain's index."""
    return _dots(found, GROUPS, "jain", "Fairness: Jain's index, 1 if all got the same share", log=False)


def _dots(found: Found, groups: Sequence[str], what: str, heading: str, log: bool) -> Any:
    shown = [group for group in groups if any(group in found.get(title, {}) for title in CROWDS)]
    if not shown:
        return None
    figure, panels = _panels(shown, 2.1)
    for group, axes in panels.items():
        tables = {title: found[title][group] for title in CROWDS if group in found.get(title, {})}
        names = list(reversed(dict.fromkeys(name for rows in tables.values() for name in rows)))
        for title, rows in tables.items():
            for name, rounds in rows.items():
                if values := column(rounds, what):
                    marker, _ = CROWDS[title]
                    axes.plot(
                        median(values), names.index(name), marker, color=_colour(name), ms=6, mec="white", mew=0.5
                    )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(axis="y", lw=0.3)
        axes.set_title(group, loc="left", fontweight="bold")
        if log:
            _logarithmic(axes)
        else:
            axes.set_xlim(0, 1.05)
    handles = [Line2D([], [], marker=marker, ls="", color=RAW, label=label) for marker, label in CROWDS.values()]
    figure.legend(handles=handles, loc="upper right", ncols=3, frameon=False)
    figure.suptitle(heading, x=0.02, ha="left")
    return figure


PICTURES: dict[str, Callable[[Found], Any]] = {
    "cycles": cycles,
    "handoff": handoff,
    "requests": requests,
    "owners": owners,
    "fairness": fairness,
}


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what a run has found; which files were written."""
    written: list[Path] = []
    for name, picture in PICTURES.items():
        figure = picture(report["found"])
        if figure is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        when = f"{report['when'][:10]}, Python {report['python']}, {report['cpus']} CPUs"
        figure.text(0.99, 0, when, ha="right", va="top", fontsize=6.5, color=RAW)
        figure.tight_layout(rect=(0, 0.01, 1, 0.99))
        for kind in ("svg", "png"):
            path = folder / f"{name}.{kind}"
            figure.savefig(path, dpi=110, metadata={"Date": None} if kind == "svg" else {"Software": None})
            written.append(path)
        plt.close(figure)
    return written


if __name__ == "__main__":
    report = json.loads((HERE / "results" / "published.json").read_text())
    draw(report, HERE.parent / "docs" / "explanation" / "performance")
