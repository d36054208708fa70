"""Models with discrete sites that were summed out: which of them have a log-density for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from bll_pyro.datatree.programs.program import Program, Survey
from bll_pyro.datatree.programs.sites import site_log_prob
from bll_pyro.datatree.programs.substitute import Substitute


def check_rows(program: Program, seen: Survey, draw: Mapping[str, Tensor]) -> None:
    """Check that discrete sites without draws can be summed out row by row.

    NUTS and ``TraceEnum_ELBO`` sum discrete sites ``z`` out. A row has a likelihood of its own,
    ``p(y_n | theta) = sum_z p(z_n | theta) p(y_n | z_n, theta)``, if each row has its own ``z_n``: all discrete sites
    and the only observed site are in the same plates, and no other latent site depends on a discrete one. Else rows
    are not independent given the draws, and the likelihood of a row is not defined.

    Raises
    ------
    ValueError
        If the model has another form, with what can be done.
    """
    enumerated = seen.of_kind("enumerated")
    if not enumerated:
        return
    names = [site.name for site in enumerated]
    remedy = (
        "Draw them from their posterior (pyro.infer.infer_discrete) and add the draws to posterior_samples, or convert "
        "with log_likelihood=False and log_prior=False."
    )
    observed = seen.of_kind("observed", "factor")
    if len(observed) != 1:
        raise ValueError(
            f"the draws lack the discrete sites {names}, which can be summed out row by row only for one observed "
            f"site; got {[site.name for site in observed]}. {remedy}"
        )
    if any(site.plates != observed[0].plates for site in enumerated):
        raise ValueError(
            f"the draws lack the discrete sites {names}. Rows of {observed[0].name!r} have likelihoods of their own "
            f"only if these sites are in the same plates, {[plate.name for plate in observed[0].plates]}; got "
            f"{ {site.name: [plate.name for plate in site.plates] for site in enumerated} }. {remedy}"
        )
    summed, plain = _both(program, seen, draw)
    for site in seen.of_kind("latent"):
        if site_log_prob(summed[site.name]).shape != site_log_prob(plain[site.name]).shape:
            raise ValueError(
                f"the latent site {site.name!r} depends on the discrete sites {names}, which the draws lack, so that "
                f"they cannot be summed out row by row. {remedy}"
            )


def without_followers(program: Program, seen: Survey, draw: Mapping[str, Tensor]) -> Survey:
    """Return the survey without the deterministic sites that follow from discrete sites without draws."""
    if not seen.of_kind("enumerated"):
        return seen
    summed, plain = _both(program, seen, draw)
    followers = {
        site.name
        for site in seen.of_kind("deterministic")
        if summed[site.name]["value"].shape != plain[site.name]["value"].shape
    }
    return replace(seen, sites={name: site for name, site in seen.sites.items() if name not in followers})


def _both(
    program: Program, seen: Survey, draw: Mapping[str, Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Run once with the discrete sites enumerated, and once without: what depends on them differs in shape."""
    rows = seen.blocks[0]
    return program.trace(Substitute(draw, rows), seen.enumerate_from).nodes, program.trace(
        Substitute(draw, rows)
    ).nodes
