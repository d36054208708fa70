"""The checks of ``bll.diagnose``, each with its verdict, its finding and what to try."""

from __future__ import annotations

import math

from bll_pyro.diagnostics import Grade
from bll_pyro.reporting.blocks import Cell, Finding, Section, SortableTable, graded, significant
from bll_pyro.reporting.material import Material

IN_WORDS = {
    Grade.OK: "nothing speaks against it",
    Grade.LOOK: "read the findings and judge for yourself",
    Grade.WRONG: "repair what is wrong before you rely on it",
}


def checks_section(material: Material) -> Section | None:
    """One line for each check; None where the training rows are not given."""
    diagnosis = material.diagnosis
    if diagnosis is None:
        return None
    counts = {grade: sum(check.verdict is grade for check in diagnosis) for grade in Grade}
    rows = [
        [
            Cell(check.name),
            graded(check.verdict),
            Cell(check.finding, remark=f"To try: {check.remedy}" if check.remedy else ""),
            significant(check.value if math.isfinite(check.value) else None, 3),
        ]
        for check in sorted(diagnosis, key=lambda check: graded(check.verdict).key or 0.0)
    ]
    flagged = f" ({', '.join(diagnosis.flagged)})" if diagnosis.flagged else ""
    words = (
        f"Checks of the fit: {counts[Grade.OK]} ok, {counts[Grade.LOOK]} to look at, {counts[Grade.WRONG]} wrong{flagged}: "
        f"{IN_WORDS[diagnosis.verdict]}."
    )
    return Section(
        "Checks of the fit",
        "checks",
        "Whether posterior, prior and predictions can be trusted, on the training rows. \u201cOk\u201d: nothing speaks "
        "against it; \u201clook\u201d: "
        "read the finding and judge for yourself; \u201cwrong\u201d: repair it first.",
        [
            SortableTable(
                "Checks, the worst first",
                dict.fromkeys(("check", "verdict", "finding", "value"), ""),
                rows,
            )
        ],
        findings=[Finding(words, diagnosis.verdict)],
        metrics={f"checks_{str(grade).replace(' ', '_')}": float(number) for grade, number in counts.items()},
        details={
            "verdict": str(diagnosis.verdict),
            "checks": {
                check.name: {
                    "verdict": str(check.verdict),
                    "value": check.value,
                    "finding": check.finding,
                    "remedy": check.remedy,
                }
                for check in diagnosis
            },
        },
    )
