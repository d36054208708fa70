"""NUTS as referee: how good its chains are, itself against importance sampling, and every other inference against it."""

import math
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import importance, ours
from benchmarks.bounds import BIAS_SCALE, elbo
from benchmarks.data import Task, fashion_features, made_up
from benchmarks.importance import Reference
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

NUM_ROWS = 2_000  # training rows of network features
NUM_DRAWS = 20_000  # draws of a Gaussian posterior: the error of a standard deviation is then half a percent
PRIOR_SCALE = 1.0  # prior scale of the weights
LIMIT_SECONDS = 240.0  # target for the time of the chains on network features
POINTS = ("SVI, MAP",)  # point estimates, whose standard deviations cannot be compared
SLOW = ("SVI, Flow",)  # left out with 1,290 weights, where its layers have 500 times as many parameters

CHAIN_COLUMNS = {
    "method": "method",
    "weights": "weights",
    "fit": "fit, s",
    "gradients": "gradients",
    "milliseconds": "ms a gradient, each process",
    "rhat": "largest R-hat",
    "ess": "smallest bulk ESS",
    "median_ess": "median bulk ESS",
    "divergences": "divergences",
}
COLUMNS = {
    "method": "method",
    "mean_error": "error of means, rms (largest), sd",
    "scale_error": "error of scales, rms (largest)",
    "kl": "KL from the posterior, nats",
    "moments": "KL of moments, nats",
    "nll": "test NLL",
    "epistemic": "mutual information over the reference's",
    "fit": "fit, s",
}


def run(options: Options) -> Report:
    """Check the chains on network features, and compare all inferences on three models."""
    report = Report("referee", "Inferences against NUTS, and NUTS against importance sampling")
    for num_classes in (2, 3):
        _small_model(report, num_classes, options)
    _network_features(report, options)
    report.notes += [
        f"Prior N(0, {PRIOR_SCALE:g}^2) for every weight and N(0, {BIAS_SCALE:g}^2) for biases in all of it.",
        "Errors of means in standard deviations of the reference; errors of scales are of their logs, so that 0.1 is about "
        "10%. Rms over all weights and biases, the largest in brackets.",
        "KL from the posterior, KL(q || p): log evidence minus ELBO. The evidence comes from importance sampling; with 1,290 "
        "weights it is not known, and the column says how much larger the divergence is than that of the best. Of a flow it "
        "is the ELBO that the fit reports, from 8 draws.",
        "KL of moments: between the Normals with the moments of reference and method, KL(reference || method). From "
        f"{NUM_DRAWS:,} draws of a Gaussian posterior; of NUTS and the flow from the draws that they keep, which makes it "
        "larger by about P (P + 1) / (4 S) for P weights and S draws.",
    ]
    return report


def _inferences(options: Options, num_weights: int) -> dict[str, Any]:
    """Give the inferences to compare, by name; SVI short in a small run."""
    import bll_pyro as bll

    left_out = POINTS if num_weights < 200 else POINTS + SLOW
    names = [n for n in ours.INFERENCES if n not in left_out and options.keeps(f"bll_pyro, {n}")]
    found = {name: made for name in names if (made := ours.inference(name)) is not None}
    if not options.small:
        return found
    return {
        name: replace(made, num_epochs=5) if isinstance(made, bll.SVI) else made
        for name, made in found.items()
    }


def _sampler(options: Options, num_chains: int) -> Any:
    # of 1,290 weights the worst R-hat counts: 1,000 draws a chain gave 1.013 where the smallest ESS was 2,187
    import bll_pyro as bll

    if options.small:
        return bll.NUTS(num_warmup=20, num_samples=20, num_chains=num_chains, num_processes=1)
    return bll.NUTS(num_chains=num_chains, num_warmup=300, num_samples=2_500)


def _layer(num_outputs: int, *, standardize: bool) -> Any:
    import bll_pyro as bll

    likelihood = bll.likelihoods.Bernoulli() if num_outputs == 1 else bll.likelihoods.Categorical(num_outputs)
    prior = bll.priors.Normal(scale=PRIOR_SCALE)
    return bll.LastLayer(likelihood, prior, bias_scale=BIAS_SCALE, standardize=standardize)


def _fit(layer: Any, task: Task, inference: Any) -> tuple[Any, float]:
    import bll_pyro as bll

    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = bll.fit(layer, (task.train_features, task.train_targets), inference=inference, seed=0)
    return fit, time.perf_counter() - began


def _draws(fit: Any) -> Tensor:
    """Draws ``[S, K, P]``, bias last: all that are kept, or 20,000 of a Gaussian."""
    values = fit.posterior.sample(NUM_DRAWS)
    return torch.cat([values["weight"], values["bias"][..., None]], -1).flatten(0, 1)


def _small_model(report: Report, num_classes: int, options: Options) -> None:
    """300 rows of 10 features: small enough for importance sampling."""
    task = made_up(60 if options.small else 300, 10, num_classes, num_test_rows=2_000)
    num_outputs = 1 if num_classes == 2 else num_classes
    began = time.perf_counter()
    num_draws = 20_000 if options.small else 200_000
    reference = importance.posterior(
        task.train_features, task.train_targets, num_outputs, PRIOR_SCALE, BIAS_SCALE, num_draws
    )
    seconds = time.perf_counter() - began
    layer = _layer(num_outputs, standardize=False)
    kind = "logistic" if num_classes == 2 else "softmax"
    table = Table(
        f"{kind.capitalize()} regression, {num_classes} classes, {len(task.train_targets)} rows x 10 features: "
        f"{reference.mean.numel()} weights, reference: importance sampling "
        f"({reference.num_effective:,.0f} effective draws)",
        dict(COLUMNS),
    )
    nll, epistemic = _scores(reference.draws, task)
    table.rows.append({"method": "importance sampling", "nll": nll, "fit": seconds, "kl": 0.0})
    for name, inference in _inferences(options, reference.mean.numel()).items():
        chosen = _sampler(options, 4) if name == "NUTS" else inference
        table.rows.append(_compare(f"bll_pyro, {name}", layer, task, chosen, reference, epistemic))
    report.tables.append(table)
    found = {row["method"]: row for row in table.rows}
    sampled = found.get("bll_pyro, NUTS")
    if sampled is not None:
        # the largest of P errors of means, each about 1 / sqrt(ESS)
        error = 4 * (1 / math.sqrt(sampled["ess"]) + 1 / math.sqrt(reference.num_effective))
        largest = sampled["mean_errors"][1]
        report.targets.append(Target(f"NUTS, {kind}: largest error of a mean, sd", largest, error))


def _scores(draws: Tensor, task: Task) -> tuple[float, float]:
    """Test NLL and mean mutual information of equally weighted draws ``[S, K, P]``, without bll_pyro."""
    design = torch.cat([task.test_features, torch.ones(len(task.test_features), 1)], -1).to(draws)
    total = torch.zeros(())
    entropies = torch.zeros(())
    for part in draws.split(500):
        outputs = design @ part.mT
        if outputs.shape[-1] == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], -1)
        probs = outputs.softmax(-1)
        total = total + probs.sum(0)
        entropies = entropies + torch.special.entr(probs).sum((0, 2))
    mean = total / len(draws)
    chosen = mean.gather(-1, task.test_targets[:, None])
    information = torch.special.entr(mean).sum(-1) - entropies / len(draws)
    return -float(chosen.log().mean()), float(information.mean())


def _compare(
    name: str, layer: Any, task: Task, inference: Any, reference: Reference, epistemic: float
) -> dict[str, Any]:
    """Fit and compare with a reference: one row of a table."""
    fit, seconds = _fit(layer, task, inference)
    return _row(name, fit, seconds, task, reference, epistemic)


def _row(
    name: str, fit: Any, seconds: float, task: Task, reference: Reference, epistemic: float
) -> dict[str, Any]:
    prediction = fit.predict(task.test_features)
    own = Reference.of_draws(_draws(fit), math.nan)
    errors = (own.mean - reference.mean) / reference.scale
    ratios = (own.scale / reference.scale).log()
    row: dict[str, Any] = {
        "method": name,
        "mean_error": _spread(errors),
        "mean_errors": _numbers(errors),
        "scale_error": _spread(ratios),
        "scale_errors": _numbers(ratios),
        "bias_of_scales": float(ratios.mean()),
        "nll": -float(prediction.log_prob(task.test_targets).mean()),
        "epistemic": float(prediction.epistemic.mean()) / epistemic,
        "fit": seconds,
    }
    if len(errors) < reference.num_effective / 10:
        row["moments"] = _normal_kl(reference, own)
    bound = _elbo(fit, task)
    if bound is not None:
        row["elbo"] = bound
        row["kl"] = None if reference.log_evidence is None else reference.log_evidence - bound
    if "ess" in fit.trace.statistics:
        row["ess"] = min(float(value.min()) for value in fit.trace.statistics["ess"].values())
    return row


def _elbo(fit: Any, task: Task) -> float | None:
    if hasattr(fit.posterior, "latents"):
        return elbo(fit, task.train_features, task.train_targets, PRIOR_SCALE)
    return float(fit.elbo) if "elbo" in fit.trace.statistics else None


def _normal_kl(first: Reference, second: Reference) -> float | None:
    """``KL(N(first) || N(second))`` in nats; None where the draws are too few for a covariance."""
    (own, failed), (other, also) = (torch.linalg.cholesky_ex(r.covariance) for r in (first, second))
    if failed or also:
        return None
    inside = torch.linalg.solve_triangular(other, own, upper=False)
    distance = torch.linalg.solve_triangular(other, (first.mean - second.mean)[:, None], upper=False)
    log_det = 2 * inside.diagonal().log().sum()
    return 0.5 * float(inside.square().sum() + distance.square().sum() - len(first.mean) - log_det)


def _numbers(errors: Tensor) -> tuple[float, float]:
    return float(errors.square().mean().sqrt()), float(errors.abs().max())


def _spread(errors: Tensor) -> str:
    typical, largest = _numbers(errors)
    return f"{typical:.3f} ({largest:.3f})"


def _network_features(report: Report, options: Options) -> None:
    """Two chains on 2,000 rows of network features; then every other inference against their draws."""
    task = made_up(80, 6, 3, num_test_rows=200) if options.small else _part(fashion_features())
    layer = _layer(task.num_classes, standardize=True)
    num_weights = task.num_classes * (task.train_features.shape[1] + 1)
    sampler = _sampler(options, 2)
    fit, seconds = _fit(layer, task, sampler)
    stats = fit.trace.statistics
    rhat, ess = (torch.cat([value.flatten() for value in stats[key].values()]) for key in ("rhat", "ess"))
    gradients = int(stats["num_gradients"].sum())
    num_processes = sampler.num_processes or min(sampler.num_chains, options.num_threads)
    label = f"bll_pyro, NUTS, {sampler.num_chains} chains, {sampler.num_warmup} + {sampler.num_samples} draws"
    title = f"Chains on {len(task.train_targets):,} rows of {task.name}"
    chains = Table(title, dict(CHAIN_COLUMNS))
    chains.rows.append({
        "method": label,
        "weights": num_weights,
        "fit": seconds,
        "gradients": gradients,
        "milliseconds": 1e3 * seconds * num_processes / gradients,
        "rhat": float(rhat.max()),
        "ess": float(ess.min()),
        "median_ess": float(np.median(ess.numpy())),
        "divergences": int(stats["sample_stats"]["diverging"].sum()),
    })  # fmt: skip
    report.tables.append(chains)
    report.targets += [
        Target("NUTS on network features: largest R-hat of a weight", float(rhat.max()), 1.01),
        Target("NUTS on network features: smallest bulk ESS of a weight", float(ess.min()), 400.0, ">="),
        Target("NUTS on network features: seconds for fit and diagnostics", seconds, LIMIT_SECONDS),
    ]
    draws = _draws(fit)
    reference = Reference.of_draws(draws, float(ess.min()))
    prediction = fit.predict(task.test_features)
    epistemic = float(prediction.epistemic.mean())
    table = Table(
        f"{title}: {num_weights:,} weights, reference: NUTS, {len(draws):,} draws",
        {**COLUMNS, "kl": "KL from the posterior over the smallest, nats"},
    )
    del table.columns["moments"]
    nll = -float(prediction.log_prob(task.test_targets).mean())
    table.rows.append({"method": label, "nll": nll, "epistemic": 1.0, "fit": seconds})
    for name, inference in _inferences(options, num_weights).items():
        if name != "NUTS":
            table.rows.append(_compare(f"bll_pyro, {name}", layer, task, inference, reference, epistemic))
    best = max((row["elbo"] for row in table.rows if "elbo" in row), default=math.nan)
    for row in table.rows:
        if "elbo" in row:
            row["kl"] = best - row["elbo"]
    report.tables.append(table)


def _part(task: Task) -> Task:
    index = torch.randperm(len(task.train_features), generator=torch.Generator().manual_seed(0))[:NUM_ROWS]
    return replace(task, train_features=task.train_features[index], train_targets=task.train_targets[index])
