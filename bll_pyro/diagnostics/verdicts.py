"""``Diagnosis``: checks, each with a number, a verdict, what it means and what to try."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

WIDTH = 118


class Grade(StrEnum):
    """Result of a check."""

    OK = "ok"
    LOOK = "look"
    WRONG = "wrong"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, eq=False)
class Check:
    """One check.

    Parameters
    ----------
    name
        What was checked.
    verdict
        Its result.
    finding
        The same in words.
    value
        Its number; NaN where it has none.
    limits
        Where ``look`` and where ``wrong`` begin, in the unit of ``value``; NaN where there is no such limit.
    remedy
        What to try; empty where all is well.
    by_row
        Numbers of rows ``[N]`` that belong to it, by name; NaN for rows that were not looked at.
    """

    name: str
    verdict: Grade
    finding: str
    value: float = float("nan")
    limits: tuple[float, float] = (float("nan"), float("nan"))
    remedy: str = ""
    by_row: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def graded(
        cls, name: str, value: float, limits: tuple[float, float], finding: str, remedy: str, **options: Any
    ) -> Check:
        """A check whose number is better the smaller it is; the remedy is shown from ``look`` on."""
        verdict = Grade.OK if value <= limits[0] else Grade.LOOK if value <= limits[1] else Grade.WRONG
        return cls(name, verdict, finding, value, limits, "" if verdict is Grade.OK else remedy, **options)

    @classmethod
    def skipped(cls, name: str, why: str) -> Check:
        """A check that does not apply, and why."""
        return cls(name, Grade.NOT_CHECKED, why)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The checks of a fit; prints as a table."""

    checks: tuple[Check, ...]
    num_rows: int

    @property
    def verdict(self) -> Grade:
        """The worst verdict of all checks."""
        found = {check.verdict for check in self.checks}
        return next((v for v in (Grade.WRONG, Grade.LOOK) if v in found), Grade.OK)

    @property
    def flagged(self) -> list[str]:
        """Names of the checks that are ``look`` or ``wrong``."""
        return [check.name for check in self.checks if check.verdict in (Grade.LOOK, Grade.WRONG)]

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check {name!r}; there are {[check.name for check in self.checks]}")

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def to_pandas(self) -> pd.DataFrame:
        """One line for each check."""
        import pandas as pd

        columns = ("verdict", "value", "finding", "remedy")
        table = {name: [getattr(check, name) for check in self.checks] for name in columns}
        table["verdict"] = [str(check.verdict) for check in self.checks]
        return pd.DataFrame(table, index=pd.Index([check.name for check in self.checks], name="check"))

    def to_dataset(self) -> xr.Dataset:
        """Verdicts, values, limits and words by ``check``; values of single rows by ``obs``."""
        import xarray as xr

        table = self.to_pandas()
        data: dict[str, Any] = {name: ("check", table[name].to_numpy()) for name in table}
        limits = np.array([check.limits for check in self.checks], dtype=float)
        data["limit_look"], data["limit_wrong"] = ("check", limits[:, 0]), ("check", limits[:, 1])
        for check in self.checks:
            data |= {name: ("obs", values) for name, values in check.by_row.items()}
        coords = {"check": table.index.to_numpy(), "obs": np.arange(self.num_rows)}
        return xr.Dataset(data, coords, attrs={"verdict": str(self.verdict)})

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{'check':<{width}}  {'verdict':<7}  finding"]
        indent = " " * (width + 11)
        for check in self.checks:
            if check.verdict is Grade.NOT_CHECKED:
                continue
            words = f"{check.finding}. To try: {check.remedy}" if check.remedy else check.finding
            wrapped = textwrap.wrap(words, WIDTH - len(indent)) or [""]
            lines.append(f"{check.name:<{width}}  {check.verdict:<7}  {wrapped[0]}")
            lines += [indent + line for line in wrapped[1:]]
        for check in self.checks:
            if check.verdict is Grade.NOT_CHECKED:
                wrapped = textwrap.wrap(f"not checked: {check.finding}", WIDTH - width - 2)
                lines.append(f"{check.name:<{width}}  {wrapped[0]}")
                lines += [" " * (width + 2) + line for line in wrapped[1:]]
        return "\n".join([*lines, "", f"Verdict: {self.verdict}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import pandas as pd

        with pd.option_context("display.max_colwidth", None):
            return self.to_pandas().to_html(float_format="{:.3g}".format)
