"""What `benchmarks/sd14.py` measured, as tables: every `data/results/sd14*.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bookbuild.pages import table

HEADER = ("Way", "Seconds", "Times as fast", "By CPU time", "Images per hour", "Share of the matrix product",
          "Peak GiB", "Losses apart")  # fmt: skip


def speed_part(results: Path) -> str:
    """A sentence and a table for each report in a folder; says so where none is of a GPU."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("sd14*.json"))]
    if not reports:
        return "Nothing has been measured yet.\n"
    parts = [report_part(report) for report in reports]
    if all(report["machine"]["gpu"] is None for report in reports):
        goals = reports[0]["goals"]
        parts.append(
            f"No GPU was lent for this book. The goals for one are {100 * goals['utilisation']:.0f} % of the "
            f"matrix product and {goals['images_per_hour']:,} images per hour at SD v1.4's size; figures of "
            "a CPU say nothing about them, only how the ways compare there.\n"
        )
    return "\n".join(parts)


def report_part(report: Mapping[str, Any]) -> str:
    """One report: what it was measured on, the ways, the round of fine-tuning."""
    machine, settings = report["machine"], report["settings"]
    about = (
        f"{machine['gpu'] or machine['cpu']}, {report['threads']} of {machine['cores']} cores used; size "
        f"`{settings['size']}`, {settings['images']} images, {settings['steps']} steps, seed "
        f"{settings['seed']}; torch {report['versions']['torch']}; {report['wall_seconds'] / 60:.0f} minutes "
        f"in all; commit `{report['commit'][:12]}`.\n"
    )
    ways = table(HEADER, (_row(way, report["ways"][way], one) for way, one in report["compared"].items()))
    rounds = [
        f"{way.capitalize()}: {one['seconds']:.0f} s and {one['mib_peak'] / 1024:.1f} GiB at its peak, for "
        f"{one['images']} images and {one['steps']} steps of search and of training.\n"
        for way, one in report["ways"].items()
        if way not in report["compared"]
    ]
    return "\n".join([about, ways, *rounds])


def _row(way: str, one: Mapping[str, float], compared: Mapping[str, float]) -> tuple[str, ...]:
    return (
        way,
        f"{one['seconds']:.0f}",
        f"{compared['times_as_fast']:.2f}",
        f"{compared['times_as_fast_by_cpu_time']:.2f}",
        f"{one['images_per_hour']:.1f}",
        f"{100 * one['utilisation']:.0f} %",
        f"{one['mib_peak'] / 1024:.1f}",
        f"{compared['losses_apart']:.1g}",
    )
