"""The published figures as Markdown, which `docs/explanation/performance.md` includes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tables
import targets

FIGURES = Path(__file__).parents[1] / "docs" / "explanation" / "performance" / "figures.inc"
CHAPTERS = {
    "S1": "Acquire and release, uncontended",
    "S2, 2 processes": "Handoff between two processes",
    "S2, 4 processes": "Handoff among four processes",
    "S3, 10 threads": "Ten threads or tasks want one lock",
    "S3, 100 threads": "A hundred threads or tasks want one lock",
    "S3, 8 processes": "Eight processes want one lock",
    "S3b": "A hundred wait for a lock that stays held",
    "S4, names used once": "Names used once",
    "S4, held at once": "Leases held at once",
    "S5, import": "Import",
    "S5, first lock, import included": "The first lock of a process, import included",
}


def write(report: dict[str, Any]) -> Path:
    """Replace the published figures by those of this run."""
    lines = [
        "## When, where, with what",
        "",
        _where(report),
        "",
        "## Against our targets",
        "",
        targets.markdown(report["targets"]),
    ]
    lines += ["", "## All figures", ""]
    for title, heading in CHAPTERS.items():
        for group, table in report["found"].get(title, {}).items():
            lines += [f"### {heading}{f': {group}' if group else ''}", "", *tables.lines(title, group, table), ""]
    lines += ["## What did not take part, and what went wrong", ""]
    lines += [f"- {label}: {reason}" for label, reason in report["absent"].items()]
    for each in report["troubles"]:
        lines.append(f"- {each['scenario']}, {each['group']}: {each['name']}: {each['what']}")
    if not report["absent"] and not report["troubles"]:
        lines.append("Nothing.")
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text("\n".join(lines) + "\n")
    return FIGURES


def _where(report: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {number}" for name, number in [*report["servers"].items(), *report["versions"].items()]
    )
    kind = "A quick run, so coarse. " if report["quick"] else ""
    return (
        f"{kind}{report['when']}; Python {report['python']} on {report['system']} with {report['cpus']} CPUs, load "
        f"{report['load']} before; servers and clients on one machine, over loopback. {versions}."
    )
