"""Figures beside what they should be, as lines and as JSON. Measures nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ortserve.runtime.host.machine import cpu_facts


class Report:
    """What was measured, beside what it should be."""

    def __init__(self) -> None:
        self.details: dict[str, Any] = {}
        self.goals: list[dict[str, Any]] = []

    def goal(self, name: str, value: float, *, at_least: float = float("-inf"), at_most: float = float("inf")) -> None:
        is_met = at_least <= value <= at_most
        wanted = f"at least {at_least:g}" if at_least > float("-inf") else f"at most {at_most:g}"
        print(f"{'met   ' if is_met else 'missed'} {name}: {value:.4g}, wanted {wanted}")
        self.goals.append({"name": name, "measured": value, "wanted": wanted, "met": is_met})

    @property
    def is_met(self) -> bool:
        return bool(self.goals) and all(one["met"] for one in self.goals)

    def write(self, file: Path | None, failure: str | None) -> None:
        """Print the details; the file is written whatever has happened."""
        cpu = cpu_facts()
        machine = {"cpu": cpu.model, "features": cpu.features, "num_cores": cpu.num_usable, "load": os.getloadavg()}
        whole: dict[str, Any] = {"command": sys.argv, "machine": machine, "failure": failure}
        whole |= {"goals": self.goals, "details": self.details}
        print(json.dumps(self.details, indent=1, default=str))
        if failure is not None:
            print(f"failed: {failure}")
        if file is not None:
            file.write_text(json.dumps(whole, indent=1, default=str) + "\n")
