"""``bll.report``: a fit on one page."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bll_pyro import __version__
from bll_pyro.checks import fitted
from bll_pyro.observation import call, stage
from bll_pyro.reporting.blocks import Finding, Section
from bll_pyro.reporting.document import FORMAT, Report, as_json, checked_path
from bll_pyro.reporting.material import Material, gather
from bll_pyro.reporting.page import rendered
from bll_pyro.reporting.sections.calibration import calibration_section
from bll_pyro.reporting.sections.checks import checks_section
from bll_pyro.reporting.sections.compared import compared_section
from bll_pyro.reporting.sections.convergence import convergence_section
from bll_pyro.reporting.sections.fitted import fitted_section
from bll_pyro.reporting.sections.prior import prior_section
from bll_pyro.reporting.sections.quality import quality_section
from bll_pyro.reporting.sections.single_rows import single_rows_section
from bll_pyro.reporting.sections.uncertainty import uncertainty_section
from bll_pyro.reporting.sections.unknown import unknown_section
from bll_pyro.reporting.sections.weights import weights_section
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    from bll_pyro.comparison.ranking import Comparison
    from bll_pyro.fitting import Fit

SECTIONS: tuple[Callable[[Material], Section | None], ...] = (
    quality_section,
    compared_section,
    calibration_section,
    uncertainty_section,
    single_rows_section,
    unknown_section,
    checks_section,
    convergence_section,
    weights_section,
    prior_section,
    fitted_section,
)


@call("report")
@own_modes()
def report(
    fit: Fit,
    data: Any,
    path: str | Path | None = "report.html",
    *,
    train: Any = None,
    held_out: Any = None,
    unknown: Any = None,
    plain_head: Fit | None = None,
    comparison: Comparison | None = None,
    items: Any = None,
    class_names: Sequence[Any] | None = None,
    row_names: Sequence[Any] | None = None,
    title: str = "Report of a Bayesian last layer",
    seed: int = 0,
) -> Report:
    """Write what is known of a fit on one page: how good it is, how far to trust it, and which rows to look at.

    The page is one file that needs nothing else: no network, no script of others. Beside it the same numbers are written as JSON,
    with names that stay the same; ``bll check report.json --fail "ece>0.03"`` reads them.

    ================== ===============================================================================================
    what is given      what it adds
    ================== ===============================================================================================
    inputs alone       uncertainties, the most uncertain rows, strongest weights, convergence
    targets, too       scores with standard errors, calibration, the most confidently wrong rows, prior predictive
    ``train``          the checks of :func:`bll_pyro.diagnose`
    ``held_out``       a detector of unknown inputs (where the fit has none); with ``train`` or ``plain_head`` the plain head, and
                       both heads recalibrated (:func:`bll_pyro.evaluate`)
    ``unknown``        how many of these rows raise an alarm
    ``comparison``     fits beside each other
    ================== ===============================================================================================

    Parameters
    ----------
    fit
        Any fit.
    data
        Rows that were not fitted, with or without targets, in any form that :func:`bll_pyro.fit` takes and in a fixed order.
    path
        Where to write the page; None writes nothing.
    train
        The rows that the fit was made from.
    held_out
        Other rows with targets, used for the recalibration of the heads and for the detector.
    unknown
        Inputs from outside the training distribution.
    plain_head
        A point estimate to compare with; None fits one to ``train``.
    comparison
        Result of :func:`bll_pyro.compare`.
    items
        What to show of single rows, in the order of ``data``: images, texts, or a data frame. By default the inputs, where they are
        images, or features without a backbone.
    class_names
        What to call the classes, in the order of their numbers; by default by the labels that they were given as.
    row_names
        What to call the rows of ``data``, such as names of files; by default their numbers.
    title
        Title of the page.
    seed
        Seeds the choice of rows for pictures, and draws.

    Returns
    -------
    Report
        ``.metrics``, ``.numbers``, ``.html``, ``.save(path)``.

    Raises
    ------
    ValueError
        If the rows come in no fixed order, ``items`` are not as many as the rows, or ``path`` cannot be written.

    Examples
    --------
    >>> bll.report(fit, test, "report.html", train=train, held_out=held_out)  # doctest: +SKIP
    """
    fitted(fit, "report")
    if path is not None:
        checked_path(path)  # before any work
    others = {"plain": plain_head, "comparison": comparison, "items": items, "seed": seed}
    names = {"class_names": class_names, "row_names": row_names}
    material = gather(fit, data, train, held_out, unknown, **others, **names)
    sections = []
    with stage("report", len(SECTIONS)) as done:
        for make in SECTIONS:
            section = make(material)
            if section is not None:
                sections.append(section)
            done.advance()
    made = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    findings = [(finding, section) for section in sections for finding in section.findings]
    findings.sort(key=lambda pair: pair[0].place)
    page = rendered(sections, findings, title, _subtitle(fit, material), made, __version__)
    result = Report(_numbers(sections, findings, title, made), page)
    if path is not None:
        result.save(path)
    return result


def _subtitle(fit: Fit, material: Material) -> str:
    guide = getattr(fit.inference, "guide", None)
    how = type(fit.inference).__name__ + ("" if guide is None else f" with the guide {type(guide).__name__}")
    prior, likelihood = type(fit.layer.prior).__name__, type(fit.layer.likelihood).__name__
    return (
        f"{likelihood} likelihood, {prior} prior, {how}; fitted to {fit.num_rows:,} rows of "
        f"{material.features.shape[1]:,} features, "
        f"judged on {material.num_rows:,} rows{'' if material.rows else ' without targets'}"
    )


def _numbers(
    sections: list[Section], findings: list[tuple[Finding, Section]], title: str, made: datetime.datetime
) -> dict[str, Any]:
    """The contents of report.json."""
    return as_json(
        {
            "format": FORMAT,
            "title": title,
            "made": made.isoformat(),
            "bll_pyro": __version__,
            "summary": [
                {
                    "words": one.words,
                    "grade": None if one.grade is None else str(one.grade),
                    "section": section.anchor,
                }
                for one, section in findings
            ],
            "metrics": {
                name: None if value is None else float(value)
                for section in sections
                for name, value in section.metrics.items()
            },
            "sections": {section.anchor: section.details for section in sections if section.details},
        }
    )
