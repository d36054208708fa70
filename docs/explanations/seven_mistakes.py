"""Seven ways to get a Bayesian last layer wrong: each mistake written out, beside the library and the truth.

Every function of the second part returns figures by name, with "truth" first: a closed form or quadrature that shares no
code with the library. The page seven-mistakes.md shows them, and tests/test_seven_mistakes.py holds them to margins.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from scipy.special import entr, expit, log_expit
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import bll_pyro as bll

NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()
GRID = np.linspace(-8, 8, 4001)
NOISE = 0.5  # standard deviation of the noise in the linear examples
LOGIT = bll.LastLayer(bll.likelihoods.Bernoulli(), bll.priors.Normal(1.0), bias=False, standardize=False)
LINE = bll.LastLayer(bll.likelihoods.Gaussian(NOISE), bll.priors.Normal(1.0), bias=False, standardize=False)


# ---- the mistakes


def elbo_of_averaged_logits(loc: Tensor, scale: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mistake 1: the logits are averaged over the weights, and the loss is of the average."""
    draws = Normal(loc, scale).rsample((64,))
    logits = (draws * inputs[:, None]).mean(1)  # [N], before the loss
    log_lik = -torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return log_lik - kl_divergence(Normal(loc, scale), Normal(0.0, 1.0))


def loss_with_kl_over_batch(loc: Tensor, scale: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mistake 2: the mean over a batch of B rows, plus the divergence divided by B (and not by all N rows)."""
    errors = (targets - loc * inputs) ** 2 + (scale * inputs) ** 2  # expected squares
    divergence = kl_divergence(Normal(loc, scale), Normal(0.0, 1.0))
    return (errors / (2 * NOISE**2)).mean() + divergence / len(inputs)


def one_draw_many_times(loc: float, scale: float, inputs: Tensor, num_draws: int) -> Tensor:
    """Mistake 3: one draw of the weights, used S times; probabilities [S, N]."""
    weight = Normal(loc, scale).sample().expand(num_draws, 1)
    return torch.sigmoid(weight * inputs)


def alarms_above_half_a_nat(entropy: Tensor) -> Tensor:
    """Mistake 4: a threshold that was right somewhere else."""
    return entropy > 0.5


def kl_with_variance_for_precision(loc: Tensor, scale: Tensor, prior_precision: float) -> Tensor:
    """Mistake 5: the formula takes the prior's precision, and gets it where it wants the variance."""
    variance = prior_precision
    return 0.5 * (scale**2 / variance + loc**2 / variance - 1 + math.log(variance) - 2 * scale.log())


def variance_head(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mistake 6: mean and log variance by maximum likelihood; coefficients [2] of (1, x) for each."""
    columns = torch.stack([torch.ones_like(inputs), inputs], -1)
    mean, log_variance = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)

    def loss() -> Tensor:
        fitted = columns @ log_variance
        return (0.5 * fitted + 0.5 * (targets - columns @ mean) ** 2 / fitted.exp()).mean()

    maximise(lambda: -loss(), mean, log_variance)
    return mean.detach(), log_variance.detach()


def interval_around_one_noise_draw(draws: Tensor, noise: float, prob: float) -> tuple[Tensor, Tensor]:
    """Mistake 7: one draw of the noise for each row, added to all draws [S, N] of its mean."""
    values = draws + noise * torch.randn(draws.shape[1])
    return values.quantile((1 - prob) / 2, 0), values.quantile((1 + prob) / 2, 0)


# ---- the figures


def averaged_logits() -> dict[str, dict[str, float]]:
    """One weight, 40 labels: evidence and bound in nats, and the spread of the weight, all by quadrature."""
    inputs = normals(40, seed=0)
    labels = (uniforms(40, seed=1) < torch.sigmoid(1.5 * inputs)).float()
    sign = (2 * labels - 1).numpy()
    log_joint = log_expit(GRID[:, None] * inputs.numpy() * sign).sum(1) + stats.norm.logpdf(GRID)
    density = np.exp(log_joint - log_joint.max())
    evidence = log_joint.max() + math.log(np.trapezoid(density, GRID))
    exact_mean = np.average(GRID, weights=density)
    exact_scale = math.sqrt(np.average((GRID - exact_mean) ** 2, weights=density))

    fit = bll.fit(LOGIT, (inputs[:, None], labels.long()), calibration=None)
    loc, log_scale = torch.tensor(1.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    with torch.random.fork_rng():

        def bound() -> Tensor:
            torch.manual_seed(0)  # the same draws in every step, so that the objective is a function
            return elbo_of_averaged_logits(loc, log_scale.exp(), inputs, labels)

        highest = maximise(bound, loc, log_scale)
    return {
        "truth": {"log evidence or bound": float(evidence), "scale": exact_scale},
        "library": {
            "log evidence or bound": fit.elbo,
            "scale": float(fit.posterior.latents.marginal_scale()),
        },
        "mistake": {"log evidence or bound": highest, "scale": float(log_scale.detach().exp())},
    }


def kl_over_batch(batch_sizes: tuple[int, ...] = (50, 200)) -> dict[str, dict[int, float]]:
    """Spread of the slope of a line through 1,000 rows, by the size of the batches; the posterior is a closed form."""
    inputs = normals(1000, seed=2)
    targets = 0.7 * inputs + NOISE * normals(1000, seed=3)
    exact = (1 + float(inputs.square().sum()) / NOISE**2) ** -0.5
    found: dict[str, dict[int, float]] = {"truth": {}, "library": {}, "mistake": {}}
    for size in batch_sizes:
        fit = bll.fit(LINE, (inputs[:, None], targets), inference=bll.SVI(batch_size=size, num_epochs=20))
        loc, log_scale = torch.tensor(0.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)

        def loss(size: int = size, loc: Tensor = loc, log_scale: Tensor = log_scale) -> Tensor:
            batches = zip(inputs.split(size), targets.split(size))
            losses = [loss_with_kl_over_batch(loc, log_scale.exp(), x, y) for x, y in batches]
            return torch.stack(losses).mean()  # what stochastic gradients lower in the mean

        maximise(lambda: -loss(), loc, log_scale)
        found["truth"][size] = exact
        found["library"][size] = float(fit.posterior.latents.marginal_scale())
        found["mistake"][size] = float(log_scale.exp().detach())
    return found


def same_weights() -> dict[str, float]:
    """Mean epistemic uncertainty of 200 rows, nats: one output of known mean and spread, so quadrature has the truth."""
    inputs = normals(40, seed=0)
    labels = (uniforms(40, seed=1) < torch.sigmoid(1.5 * inputs)).long()
    fit = bll.fit(LOGIT, (inputs[:, None], labels), calibration=None)
    loc, scale = float(fit.posterior.latents.weights.loc), float(fit.posterior.latents.marginal_scale())
    rows = 2 * normals(200, seed=4)
    draws = expit(rows.numpy()[:, None] * (loc + scale * NODES))  # [N, nodes]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        repeated = one_draw_many_times(loc, scale, rows, 100)
    probs = repeated.double().numpy()
    return {
        "truth": float(
            (two_class_entropy(draws @ NODE_WEIGHTS) - two_class_entropy(draws) @ NODE_WEIGHTS).mean()
        ),
        "library": float(fit.predict(rows[:, None]).epistemic.mean()),
        "mistake": float((two_class_entropy(probs.mean(0)) - two_class_entropy(probs).mean(0)).mean()),
    }


def fixed_threshold(alpha: float = 0.05, num_splits: int = 10) -> dict[str, dict[str, float]]:
    """Share of known rows that raise an alarm, on three data sets; the promise is ``alpha``.

    The mean over random splits of the held-out rows into calibration and test rows, whose expectation is known.
    """
    found: dict[str, dict[str, float]] = {"truth": {}, "library": {}, "mistake": {}}
    for name, load, noise in (
        ("digits", load_digits, 0),
        ("breast cancer", load_breast_cancer, 0),
        ("noisy digits", load_digits, 8),
    ):
        inputs, labels = load(return_X_y=True)
        random = np.random.default_rng(1)
        inputs = inputs + random.normal(0, noise, inputs.shape)
        train, held_out, _ = np.split(random.permutation(len(inputs)), [169, 569])
        layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes=len(set(labels))))
        fit = bll.fit(layer, (inputs[train], labels[train]))
        rates = []
        for _ in range(num_splits):
            calibration, test = np.array_split(random.permutation(held_out), 2)
            detector = bll.ood.Detector(bll.ood.PredictiveEntropy(), alpha=alpha).calibrate(
                fit, inputs[calibration]
            )
            rates.append(float(detector.detect(inputs[test]).is_ood.double().mean()))
        found["truth"][name] = alpha
        found["library"][name] = float(np.mean(rates))
        entropy = fit.predict(inputs[held_out]).total
        found["mistake"][name] = float(alarms_above_half_a_nat(entropy).double().mean())
    return found


def swapped_kl(prior_scale: float = 0.2) -> dict[str, dict[str, float]]:
    """KL divergence in nats, and the slope of a line through 10 rows under a prior of scale 0.2; closed forms."""
    inputs = normals(10, seed=5)
    targets = 0.7 * inputs + NOISE * normals(10, seed=6)
    precision = prior_scale**-2 + float(inputs.square().sum()) / NOISE**2
    exact = {"slope": float(inputs @ targets) / NOISE**2 / precision, "scale": precision**-0.5}
    layer = bll.LastLayer(
        bll.likelihoods.Gaussian(NOISE), bll.priors.Normal(prior_scale), bias=False, standardize=False
    )
    fit = bll.fit(layer, (inputs[:, None], targets))
    loc, scale = fit.posterior.latents.weights.loc[0, 0], fit.posterior.latents.marginal_scale()[0, 0]
    expected = Normal(loc * inputs, NOISE).log_prob(targets) - (scale * inputs / NOISE) ** 2 / 2
    q, prior = stats.norm(exact["slope"], exact["scale"]), stats.norm(0, prior_scale)
    points = np.linspace(-2, 2, 40_001)
    exact["kl"] = float(np.trapezoid(q.pdf(points) * (q.logpdf(points) - prior.logpdf(points)), points))

    wrong_loc, log_scale = torch.tensor(0.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)

    def bound() -> Tensor:
        s = log_scale.exp()
        expected = Normal(wrong_loc * inputs, NOISE).log_prob(targets) - (s * inputs / NOISE) ** 2 / 2
        return expected.sum() - kl_with_variance_for_precision(wrong_loc, s, prior_scale**-2)

    maximise(bound, wrong_loc, log_scale)
    at_truth = torch.tensor(exact["slope"]), torch.tensor(exact["scale"])
    return {
        "truth": exact,
        "library": {"slope": float(loc), "scale": float(scale), "kl": float(expected.sum()) - fit.elbo},
        "mistake": {
            "slope": float(wrong_loc.detach()), "scale": float(log_scale.detach().exp()),
            "kl": float(kl_with_variance_for_precision(*at_truth, prior_scale**-2)),
        },
    }  # fmt: skip


def variance_head_for_epistemic(sizes: tuple[int, ...] = (50, 800)) -> dict[str, dict[int, float]]:
    """Standard deviation of the mean of a line at x = 1, by the number of rows; the posterior is a closed form."""
    found: dict[str, dict[int, float]] = {"truth": {}, "library": {}, "mistake": {}}
    layer = bll.LastLayer(
        bll.likelihoods.HeteroscedasticGaussian(), bll.priors.Normal(1.0), bias_scale=1.0, standardize=False
    )
    at = torch.tensor([1.0, 1.0])
    for size in sizes:
        inputs = normals(size, seed=7)
        targets = 0.7 * inputs + NOISE * normals(size, seed=8)
        columns = torch.stack([torch.ones(size), inputs], -1)
        precision = torch.eye(2) + columns.mT @ columns / NOISE**2
        found["truth"][size] = float((at @ torch.linalg.inv(precision) @ at).sqrt())
        fit = bll.fit(layer, (inputs[:, None], targets), calibration=None)
        found["library"][size] = float(fit.predict(torch.ones(1, 1)).epistemic.sqrt())
        _, log_variance = variance_head(inputs, targets)
        found["mistake"][size] = float((at @ log_variance / 2).exp())
    return found


def one_noise_draw(prob: float = 0.9) -> dict[str, float]:
    """Share of 2,000 new targets inside 90% intervals of a line through 40 rows."""
    inputs, rows = normals(40, seed=9), normals(2000, seed=10)
    targets = 0.7 * inputs + NOISE * normals(40, seed=11)
    new = 0.7 * rows + NOISE * normals(2000, seed=12)
    fit = bll.fit(LINE, (inputs[:, None], targets), inference=bll.Exact())
    precision = 1 + inputs.square().sum() / NOISE**2
    loc, scale = inputs @ targets / NOISE**2 / precision * rows, (NOISE**2 + rows**2 / precision).sqrt()
    half = stats.norm.ppf((1 + prob) / 2) * scale
    with torch.random.fork_rng():
        torch.manual_seed(0)
        means = fit.posterior.sample(1000)["weight"].reshape(1000, 1).float() * rows
        wrong = interval_around_one_noise_draw(means, NOISE, prob)
    return {
        "truth": share_inside((loc - half, loc + half), new),
        "library": share_inside(fit.predict(rows[:, None]).interval(prob), new),
        "mistake": share_inside(wrong, new),
    }


# ---- tools


def normals(number: int, seed: int) -> Tensor:
    """Standard normal numbers ``[number]``."""
    return torch.randn(number, generator=torch.Generator().manual_seed(seed))


def uniforms(number: int, seed: int) -> Tensor:
    """Numbers ``[number]`` between 0 and 1."""
    return torch.rand(number, generator=torch.Generator().manual_seed(seed))


def two_class_entropy(probs: np.ndarray) -> np.ndarray:
    """Entropy of the label in nats."""
    return entr(probs) + entr(1 - probs)


def share_inside(interval: tuple[Tensor, Tensor], targets: Tensor) -> float:
    """Share of the targets inside their intervals."""
    lower, upper = (end.reshape(-1) for end in interval)
    return float(((lower <= targets) & (targets <= upper)).float().mean())


def maximise(value: Callable[[], Tensor], *parameters: Tensor) -> float:
    """Take parameters to a maximum by L-BFGS; the highest value."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -value()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(value().detach())
