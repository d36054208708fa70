"""``from_pyro``: any Pyro model with its draws, MCMC run or guide, as a DataTree for ArviZ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro.datatree.layout import SAMPLE_DIMS
from bll_pyro.datatree.programs.conversion import Conversion
from bll_pyro.datatree.programs.groups import Coords, Dims
from bll_pyro.datatree.programs.program import Program, undisturbed
from bll_pyro.datatree.programs.source import DrawSource, from_guide, from_mcmc, from_samples
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    import xarray as xr


@own_modes()
def from_pyro(
    model: Callable[..., Any] | None = None,
    posterior_samples: Mapping[str, Any] | None = None,
    *,
    guide: Callable[..., Any] | None = None,
    mcmc: Any = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    num_draws: int = 1000,
    prior: bool | int = True,
    posterior_predictive: bool = True,
    log_likelihood: bool = True,
    log_prior: bool = True,
    coords: Coords | None = None,
    dims: Dims | None = None,
    constant_data: Mapping[str, Any] | None = None,
    predictions_args: Sequence[Any] | None = None,
    predictions_kwargs: Mapping[str, Any] | None = None,
    predictions_coords: Coords | None = None,
    predictions_constant_data: Mapping[str, Any] | None = None,
    sample_dims: Sequence[str] = SAMPLE_DIMS,
    vectorize: bool | None = None,
    seed: int = 0,
) -> xr.DataTree:
    """Convert a Pyro model and its posterior to a DataTree that ArviZ 1.x understands.

    ======================== ==================================================== =================================
    group                    what it holds                                        shape
    ======================== ==================================================== =================================
    ``posterior``            draws of the latent sites, deterministic sites       ``chain, draw, *plates, *event``
    ``sample_stats``         ``log_p`` = log p(z, y); of a guide also ``log_q`` = ``chain, draw``
                             log q(z); of MCMC also ``lp`` (in unconstrained
                             space), ``diverging``, and what
                             :class:`RecordingNUTS` kept
    ``log_likelihood``       log p(y_n | z) by observed site and row              ``chain, draw, *plates``
    ``log_prior``            log p(z_i) by latent site                            ``chain, draw, *plates``
    ``posterior_predictive`` new data from the posterior                          ``chain, draw, *plates, *event``
    ``prior``                draws from the prior, deterministic sites            ``chain, draw, *plates, *event``
    ``prior_predictive``     new data from the prior                              ``chain, draw, *plates, *event``
    ``predictions``          data at ``predictions_args`` from the posterior      ``chain, draw, *plates, *event``
    ``observed_data``        the data                                             ``*plates, *event``
    ``constant_data``        what is passed as such                               as passed
    ======================== ==================================================== =================================

    Everything is about the full data: plates that subsample are run block by block, and log-densities are not scaled
    by their subsampling. ``poutine.scale`` is a part of the model and is kept. The rows of the log-likelihood are those
    that plates declare; rows hidden in an event (``.to_event(1)``) are one row. Rows under a mask are left out. Axes that
    are neither declared by a plate nor part of an event are refused: they usually come from shapes that broadcast by accident.
    Discrete sites without draws (summed out by NUTS and by ``TraceEnum_ELBO``) are summed out of the likelihood of
    each row, where rows have discrete sites of their own; other models with such sites are refused.

    A guide's draws are independent: one chain, ``attrs["independent_draws"] = 1``; R-hat and ESS say nothing about
    them. Its ``log_q`` is missing where the guide has no density (a MAP estimate); ``attrs["log_q_missing"]`` says why.

    Parameters
    ----------
    model
        The Pyro program. May be left out with ``mcmc``, whose kernel knows it.
    posterior_samples
        Draws by site, with the leading axes ``sample_dims``. Or give ``guide``, or ``mcmc``; or none of the three for
        the prior groups alone.
    guide
        A trained guide, an autoguide or a function. Its parameters are in Pyro's store or in the module itself.
    mcmc
        A finished ``pyro.infer.MCMC``.
    args, kwargs
        Arguments of model and guide, with the full data. Default: none, or those of the MCMC run.
    num_draws
        Draws from the guide and from the prior.
    prior
        Whether to draw from the prior, or how often.
    posterior_predictive, log_likelihood, log_prior
        Which groups to make. ``log_p`` and ``lp`` are made where both densities are.
    coords
        Values of dimensions, by name.
    dims
        Names of the axes of a site besides chain and draw, where plate names and ``{site}_dim_0`` will not do.
    constant_data
        Arrays to keep with the tree, inputs for instance; name their axes by ``dims``.
    predictions_args, predictions_kwargs, predictions_coords, predictions_constant_data
        Arguments for predictions of new rows, and what belongs to them.
    sample_dims
        ``("chain", "draw")``, or ``("draw",)`` for samples without a chain axis.
    vectorize
        None: run all draws at once (``torch.vmap``) if that is checked to give the same as runs one by one, else one by
        one; ``attrs["evaluation"]`` says which. False: one by one. True: insist.
    seed
        Seeds all draws. The caller's random state, parameter store and modules are not changed.

    Raises
    ------
    ValueError
        If the input doesn't fit together: what was expected, what was got, and what to do.

    Examples
    --------
    >>> tree = bll.from_pyro(mcmc=mcmc, coords={"school": names})  # doctest: +SKIP
    >>> tree = bll.from_pyro(model, guide=guide, args=(x, y))  # doctest: +SKIP
    >>> az.loo_approximate_posterior(tree, tree.sample_stats.log_p, tree.sample_stats.log_q)  # doctest: +SKIP
    """
    _check(posterior_samples, guide, mcmc, num_draws, prior, seed)
    if mcmc is not None:
        model = model if model is not None else getattr(mcmc.kernel, "model", None)
        if args is None and kwargs is None:
            args, kwargs = mcmc._args or (), mcmc._kwargs or {}
    if model is None:
        raise ValueError(
            "model is missing; expected the Pyro program that the draws belong to"
            + (", since the kernel of mcmc was made from a potential function." if mcmc is not None else ".")
        )
    program = Program(model, tuple(args or ()), dict(kwargs or {}))
    seeds = [int(number) for number in np.random.SeedSequence(seed).generate_state(5)]
    source: DrawSource | None = None
    if posterior_samples is not None:
        source = from_samples(posterior_samples, sample_dims)
    elif mcmc is not None:
        source = from_mcmc(mcmc)
    elif guide is not None:
        guide_program = Program(guide, program.args, program.kwargs)
        with undisturbed([guide_program, program], seeds[0]):
            source = from_guide(guide_program, num_draws, vectorize)
    work = Conversion.of(program, source, coords or {}, dims or {}, vectorize, seeds[1:], guide)
    if source is not None:
        work.add_posterior(log_likelihood=log_likelihood, log_prior=log_prior)
        if posterior_predictive:
            work.add_posterior_predictive()
        if predictions_args is not None or predictions_kwargs is not None:
            new = Program(model, tuple(predictions_args or ()), dict(predictions_kwargs or {}))
            work.add_predictions(new, predictions_coords or {}, predictions_constant_data or {})
    if prior is not False:
        work.add_prior(num_draws if prior is True else prior)
    work.add_data(constant_data or {})
    return work.tree({"seed": seed})


def _check(
    posterior_samples: Any, guide: Any, mcmc: Any, num_draws: int, prior: bool | int, seed: int
) -> None:
    """Refuse arguments that contradict each other."""
    sources = {"posterior_samples": posterior_samples, "guide": guide, "mcmc": mcmc}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"expected one source of draws, got {given}; drop all but one of them.")
    if not given and prior is False:
        raise ValueError("nothing to convert; expected posterior_samples, guide or mcmc, or prior=True.")
    if num_draws < 1 or (prior is not True and prior is not False and prior < 1):
        raise ValueError(f"expected at least one draw; got num_draws={num_draws}, prior={prior}.")
    if seed < 0:
        raise ValueError(f"expected a seed of 0 or more; got {seed}.")
