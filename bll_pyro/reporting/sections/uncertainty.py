"""How uncertain the predictions are, of which kind, and whether the uncertainty is worth something."""

from __future__ import annotations

from bll_pyro import metrics, plots
from bll_pyro.prediction import ClassPrediction, LabelPrediction, ValuePrediction
from bll_pyro.reporting.blocks import Chart, Finding, Section, percent
from bll_pyro.reporting.material import Material
from bll_pyro.reporting.pictures import SIZE, untitled


def uncertainty_section(material: Material) -> Section:
    """Aleatoric against epistemic, and what abstaining from the most uncertain rows gains."""
    parts = {name: float(material.by_row(name).mean()) for name in ("total", "aleatoric", "epistemic")}
    share = parts["epistemic"] / parts["total"] if parts["total"] > 0 else 0.0
    unit = "nats" if material.has_entropies else "squared units of the target"
    section = Section(
        "Uncertainty",
        "uncertainty",
        "Aleatoric uncertainty is noise in the target, which stays however much data there are; epistemic uncertainty "
        "is what the fit does "
        "not know yet, and more data reduce it. They add up to the total.",
        findings=[
            Finding(
                f"On average {percent(share, 0)} of the uncertainty is epistemic, which more training rows would reduce."
            )
        ],
        metrics={**parts, "epistemic_share": share},
    )
    section.blocks.append(
        Chart(
            "Aleatoric against epistemic",
            lambda: untitled(plots.decomposition(material.sampled, size=SIZE)),
            "Each point is a row: to the right there is more noise, upwards the fit knows less; grey lines join rows of "
            "equal total "
            f"uncertainty.{material.of_sample}",
            f"Scatter of aleatoric and epistemic uncertainty: means {parts['aleatoric']:.3g} and "
            f"{parts['epistemic']:.3g} {unit}, largest "
            f"{material.by_row('aleatoric').max():.3g} and {material.by_row('epistemic').max():.3g}.",
        )
    )
    if material.rows is not None and material.num_rows > 1:
        _abstaining(section, material)
    return section


def _abstaining(section: Section, material: Material) -> None:
    """What is gained where the most uncertain rows are left to somebody else."""
    prediction, targets = material.sampled, material.targets[material.sample.to(material.targets.device)]
    if isinstance(prediction, ClassPrediction | LabelPrediction):
        error = (material.decided[material.sample.to(targets.device)] != targets).double()
        what, unit = "share of wrong decisions", ""
    elif isinstance(prediction, ValuePrediction):
        error = (prediction.mean - targets.to(prediction.mean).view_as(prediction.mean)).double().square()
        what, unit = "mean squared error", " squared units of the target"
    else:
        return
    error = error.reshape(len(error), -1).mean(1)
    total = prediction.total.reshape(len(error), -1).sum(1)
    curve = metrics.risk_coverage(total, error)
    half, everything = float(curve.risk[(len(curve.risk) - 1) // 2]), float(curve.risk[-1])
    section.metrics["error_of_surer_half"] = half
    section.blocks.append(
        Chart(
            "What abstaining gains",
            lambda: untitled(plots.risk_coverage(total, error, size=SIZE)),
            "From left to right more rows are answered, the surest first; the lower the curve below the dashed line, the more the "
            f"uncertainty knows of the errors; the area is the mean height of the curve.{material.of_sample}",
            f"Error against the share of rows that are answered: the {what} is {half:.3g}{unit} among the surer half "
            f"and {everything:.3g}{unit} among "
            "all rows.",
        )
    )
