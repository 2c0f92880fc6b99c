"""Side by side with the raw clients and with other libraries, on servers of its own.

    nox -s bench                                 # everything, about ten minutes
    nox -s bench -- --quick                      # everything, coarsely
    nox -s bench -- --only redis --only S2       # some stores and scenarios
    nox -s bench -- --published                  # also replaces the published figures and pictures

All contestants of a store take turns within one run, so whatever else the machine does meets all of them. Compare
the ratios within a run; the microseconds belong to the machine. No speed makes the run fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import machine
import page
import tables
import targets
from contest import Contestant, Place, contestants
from scenarios import FULL, QUICK, SCENARIOS, Run
from seats import Hall, Trouble
from startup import start_up
from stores import Stores, new_folder

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PICTURES = HERE.parent / "docs" / "explanation" / "performance"
STORES = ("redis", "memcached", "etcd", "file", "memory")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [*STORES, *SCENARIOS, "S5"]
    parser.add_argument("--only", action="append", default=[], choices=choices, help="a store or a scenario; repeat it")
    parser.add_argument("--contestant", action="append", default=[], help="only those whose name contains this")
    parser.add_argument("--rounds", type=int, help="of S1")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--published", action="store_true", help="replace the published figures and pictures")
    return parser.parse_args()


def ready(hall: Hall, stores: Stores, entries: list[Contestant], absent: dict[str, str]) -> list[Contestant]:
    """Those that can be opened. The others are named with the reason."""
    able = []
    for entry in entries:
        reason = stores.missing.get(entry.store)
        try:
            if reason is None:
                hall.seats(entry)
        except Trouble as trouble:
            reason = str(trouble)
        if reason is None:
            able.append(entry)
        else:
            absent[entry.label] = reason
            print(f"  ! MISSING: {entry.label}: {reason}", file=sys.stderr, flush=True)
    return able


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    wanted = [store for store in STORES if store in chosen.only] or list(STORES)
    scenarios = [name for name in (*SCENARIOS, "S5") if name in chosen.only] or [*SCENARIOS, "S5"]
    effort = QUICK if chosen.quick else FULL
    if chosen.rounds:
        effort = dataclasses.replace(effort, rounds=chosen.rounds)
    entries = [
        entry
        for entry in contestants()
        if entry.store in wanted and (not chosen.contestant or any(part in entry.name for part in chosen.contestant))
    ]
    absent = {entry.label: "too slow for a quick run" for entry in entries if entry.slow and not effort.slow}
    entries = [entry for entry in entries if entry.label not in absent]
    begun = time.monotonic()
    with new_folder() as name:
        folder = Path(name)
        files = folder / "files"
        files.mkdir()
        stores = Stores(folder, files, wanted)
        hall = Hall(Place(str(files), stores.ports), folder)
        try:
            run = Run(hall, stores, effort, ready(hall, stores, entries, absent))
            for scenario in scenarios:
                if scenario == "S5":
                    start_up(run, wanted)
                else:
                    SCENARIOS[scenario](run)
        finally:
            hall.close()
            stores.stop()
    report = machine.describe(entries)
    report |= {
        "quick": chosen.quick,
        "only": chosen.only + chosen.contestant,
        "seconds": round(time.monotonic() - begun),
        "absent": absent,
    }
    return report | {"troubles": run.troubles, "targets": targets.judge(run.found), "found": run.found}


def show(report: dict[str, Any]) -> str:
    parts = [tables.show(report["found"]), ""]
    parts += [f"LEFT OUT  {label}: {reason}" for label, reason in report["absent"].items()]
    for each in report["troubles"]:
        parts.append(f"TROUBLE   {each['scenario']}, {each['group']}: {each['name']}: {each['what']}")
    parts += ["", targets.show(report["targets"], not report["only"]), ""]
    versions = ", ".join(
        f"{name} {number}" for name, number in [*report["servers"].items(), *report["versions"].items()]
    )
    parts.append(f"{report['when']} · Python {report['python']} · {report['system']} · {versions}")
    parts.append(f"{report['cpus']} CPUs, load {report['load']} · {report['seconds']} s")
    return "\n".join(parts)


def main() -> None:
    chosen = arguments()
    report = measure(chosen)
    print(show(report))
    RESULTS.mkdir(exist_ok=True)
    name = "published" if chosen.published else time.strftime("%Y%m%d-%H%M%S")
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{path.relative_to(HERE.parent)}")
    if chosen.published:
        print(page.write(report).relative_to(HERE.parent))
    import plots  # slow to load

    for picture in plots.draw(report, PICTURES if chosen.published else RESULTS / name):
        print(picture.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
