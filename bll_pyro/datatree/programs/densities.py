"""Log-densities of draws: by row of the data, by latent site, of the joint, and of the guide.

The second half is about discrete sites that were summed out: which models then have a log-density for each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bll_pyro.datatree.programs.program import Program, Survey
from bll_pyro.datatree.programs.runs import Key, Runs
from bll_pyro.datatree.programs.sites import site_log_prob
from bll_pyro.datatree.programs.substitute import Substitute

NamedArrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Densities:
    """Log-densities ``[draw, ...]`` of a model; ``joint = sum(likelihood) + sum(prior)``.

    ================= ============================================ ==========================
    on paper          in code                                      shape
    ================= ============================================ ==========================
    log p(y_n | z)    ``likelihood[site]``                         ``[draw, *rows]``
    log p(z_i)        ``prior[site]``                              ``[draw, *batch]``
    log p(z, y)       ``joint``, on all rows                       ``[draw]``
    ================= ============================================ ==========================

    ``pyro.factor`` is part of the prior where the model has data, since it restricts the latent sites; in a model whose
    only observations are factors they are its likelihood. Masks and ``poutine.scale`` count, as they do in inference.
    """

    likelihood: NamedArrays
    prior: NamedArrays
    joint: NDArray[np.float64]

    @classmethod
    def keys(cls, seen: Survey) -> list[Key]:
        """Return what has to be collected from the runs of the model."""
        return [("log_prob", site.name) for site in seen.of_kind("latent", "observed", "factor")]

    @classmethod
    def of(cls, seen: Survey, runs: Runs, num_draws: int) -> Densities:
        """Sort the log-densities of the runs."""
        data = seen.of_kind("observed") or seen.of_kind("factor")
        likelihood = {site.name: runs.log_prob(site.name) for site in data}
        prior = {
            site.name: runs.log_prob(site.name)
            for site in seen.of_kind("latent", "factor")
            if site.name not in likelihood
        }
        joint = np.zeros(num_draws)
        for name, part in {**likelihood, **prior}.items():
            if np.isnan(part).any():
                draw = int(np.isnan(part).reshape(num_draws, -1).any(1).argmax())
                raise ValueError(
                    f"the log-density of site {name!r} is NaN at draw {draw}; expected a number or -inf. Look for "
                    "draws outside the support of the site, and for NaN in args or kwargs."
                )
            joint += part.reshape(num_draws, -1).sum(1)
        return cls(likelihood, prior, joint)


def guide_density(
    model: Survey, guide: Survey, runs: Runs, num_draws: int
) -> tuple[NDArray[Any] | None, str]:
    """Return ``log q`` of the guide's draws ``[draw]``, or None and the reason why there is no such density.

    A guide may draw auxiliary numbers and set latent sites from them, as Pyro's autoguides do. Its density is that of
    the latent sites only if it draws as many auxiliary numbers as it sets (a change of variables): with fewer it puts
    mass on points or curves (a MAP estimate), with more the surplus would have to be integrated out.
    """
    # A guide that works by handlers on the model shows the model's factors too; they are not its own.
    scored = [s for s in guide.of_kind("latent", "factor") if s.kind == "latent" or s.name not in model.sites]
    auxiliary = sum(site.num_free for site in scored if site.name not in model.sites)
    tied = [site.name for site in scored if site.is_point and site.name in model.sites]
    numbers_set = sum(model.sites[name].num_free for name in tied)
    if auxiliary < numbers_set:
        return None, f"the guide is a point mass in {tied}: {auxiliary} random numbers set {numbers_set}"
    if auxiliary > numbers_set:
        return (
            None,
            f"the guide draws {auxiliary} auxiliary numbers and sets {numbers_set}: the rest is not integrated out",
        )
    total = np.zeros(num_draws)
    for site in scored:
        total += runs.log_prob(site.name).reshape(num_draws, -1).sum(1)
    return total, ""


def unconstrained(
    joint: NDArray[np.float64], draws: Mapping[str, NDArray[Any]], transforms: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Log-density in unconstrained space, ``log p(z, y) - sum_i log |det du_i / dz_i|``: minus the energy of a sampler.

    ``transforms`` take a site's value ``z [draw, ...]`` to its unconstrained value ``u``.
    """
    result = joint.copy()
    for name, transform in transforms.items():
        if name in draws:
            value = torch.as_tensor(draws[name])
            slope = transform.log_abs_det_jacobian(value, transform(value))
            result -= slope.reshape(len(result), -1).double().sum(1).numpy()
    return result


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
