"""What a check found, and how a list of findings reads."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

OK, WARN, FAULT = "ok", "warn", "FAULT"
HEADER = ("check", "state", "found", "what to do")
NARROWEST = 24


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        check: qos, clock, tf, shared memory, gpu, nodes or diagnostics.
        state: OK, WARN or FAULT.
        found: what is the case.
        advice: what to do; empty where nothing is to be done.
    """

    check: str
    state: str
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 with a fault, 0 without."""
    return int(any(finding.state == FAULT for finding in findings))


def describe(findings: Sequence[Finding], width: int = 120) -> str:
    """A table of `width` columns: check, state, what was found, what to do."""
    rows = [(item.check, item.state, item.found, item.advice) for item in findings]
    first = max(len(row[0]) for row in [HEADER, *rows])
    second = max(len(row[1]) for row in [HEADER, *rows])
    rest = max(width - first - second - 6, 2 * NARROWEST)
    widths = (first, second, rest // 2, rest - rest // 2)
    lines = [_row(HEADER, widths), "-" * (sum(widths) + 6)]
    return "\n".join(lines + [_row(row, widths) for row in rows])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    wrapped = [textwrap.wrap(cell, wide) or [""] for cell, wide in zip(cells, widths, strict=True)]
    tallest = max(map(len, wrapped))
    padded = [column + [""] * (tallest - len(column)) for column in wrapped]
    lines = zip(*padded, strict=True)
    return "\n".join(
        "  ".join(f"{cell:<{wide}}" for cell, wide in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
