"""Whether the inference reached its end."""

from __future__ import annotations

from typing import Any

import torch

from bll_pyro import plots
from bll_pyro.diagnostics import Grade
from bll_pyro.inference.own_loop import OwnLoop
from bll_pyro.reporting.blocks import Chart, Facts, Finding, Section
from bll_pyro.reporting.material import Material
from bll_pyro.reporting.pictures import SIZE, untitled


def convergence_section(material: Material) -> Section:
    """The ELBO of the steps where there are some, R-hat of chains, and what the inference says of itself."""
    fit, trace = material.fit, material.fit.trace
    known = not isinstance(fit.inference, OwnLoop)
    facts: dict[str, str] = {}
    if known:
        facts["Stopping test"] = "passed" if trace.converged else "not passed"
        facts["Time"] = f"{trace.wall_time:.1f} s"
    else:
        facts["Stopping test"] = "made by a loop outside the library, which has not said whether it converged"
    value = trace.final_elbo if trace.final_elbo is not None else trace.log_evidence
    name = "ELBO" if trace.final_elbo is not None else "Log evidence"
    if value is not None:
        facts[name] = f"{value:.1f} nats, {value / max(fit.num_rows, 1):.4g} a training row"
    if trace.rhat is not None and trace.ess is not None:
        facts["Largest R-hat"] = (
            f"{_largest(trace.rhat):.3f}; below 1.01 is good: chains from different starts agree"
        )
        facts["Smallest number of effective draws"] = (
            f"{-_largest({k: -v for k, v in trace.ess.items()}):.0f}"
        )
    for title, lines in (("Warnings", trace.messages), ("Notes", trace.notes)):
        if lines:
            facts[title] = "; ".join(lines)
    section = Section(
        "Convergence",
        "convergence",
        "Whether the inference went on until nothing changed any more.",
        [Facts(facts)],
        details={"facts": facts},
    )
    if known:
        section.metrics = {"converged": float(trace.converged), "seconds": trace.wall_time}
        if not trace.converged:
            section.findings.append(
                Finding("The inference has not converged; its warnings say what to do.", Grade.LOOK)
            )
    if value is not None:
        section.metrics["elbo_per_row" if name == "ELBO" else "log_evidence_per_row"] = value / max(
            fit.num_rows, 1
        )
    steps = trace.elbo
    if steps is not None and len(steps) > 1 and bool(torch.isfinite(steps).all()):
        section.blocks.append(_picture(material, steps))
    return section


def _picture(material: Material, steps: torch.Tensor) -> Chart:
    per_row = steps.double() / max(material.fit.num_rows, 1)
    tail = per_row[-max(1, len(per_row) // 20) :]
    draw: Any = lambda: untitled(plots.elbo_trace(material.fit, size=SIZE))  # noqa: E731
    return Chart(
        "ELBO of each step",
        draw,
        "The curve should rise and then be flat; if it still rises at the right end, more steps are needed.",
        f"Trace of the ELBO over {len(steps):,} steps: from {float(per_row[0]):.3g} nats a row at the first step to "
        f"{float(tail.mean()):.3g} at "
        "the end.",
    )


def _largest(values: dict[str, torch.Tensor]) -> float:
    return max(float(value.nan_to_num(nan=-torch.inf).max()) for value in values.values())
