"""Swap one word of the declaration and everything downstream goes on: every prior x guide x likelihood, every inference.

One table a family: ``PRIORS`` (prior_cases.py), ``guides_for`` (guide_cases.py), ``LIKELIHOODS`` and ``INFERENCES``
(here). A new member enters by one line, and ``test_every_member_is_in_its_table`` fails until it has. ``CANNOT`` lists the
combinations that cannot work, each with its error; all others have to.

- Whole product: every class of prior x every class of guide x every line of ``LIKELIHOODS`` is fitted by two steps of SVI
  from the centre of the prior. The fit predicts and draws: the decomposition adds up, densities are finite, the sites are
  the declared ones. Of a class with several lines in its table, the first.
- All lines: what costs more (warm start, cut to one step of each kind, recalibration by left-out rows, tree, save and load,
  vectorised particles) is done
  where ``k = (i + j) % L``, with L likelihoods, by which each pair of lines of two tables is met.
- Triple ``(i, j, k)`` runs with or without bias and standardisation by ``option_of``: each pair of the whole product meets
  all four ways, and so does each line in the costlier part; one and many targets are lines of ``LIKELIHOODS``.
  ``test_design`` counts all this.
- The other inferences run over every pair of prior and likelihood: exact ones over each, the three curvatures of Laplace in
  turns, NUTS and joint training over one likelihood a prior. What they cannot take, they refuse over the whole product.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from guide_cases import guides_for
from prior_cases import PRIORS, D, K
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import bll_pyro as bll
from bll_pyro import guides, inference, likelihoods, priors
from bll_pyro.declaration import from_plain, to_plain
from bll_pyro.features.store import Features
from bll_pyro.inference import start
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.standardization import make_frame
from bll_pyro.inference.svi import gaussian_start, objective, svi
from bll_pyro.model import Model
from bll_pyro.scope import generator, isolated

NUM_ROWS = 24
pytestmark = pytest.mark.filterwarnings("ignore:no rows were kept:RuntimeWarning")  # so few, in joint fits
GUIDES = guides_for(K, D)
LIKELIHOODS: dict[str, tuple[likelihoods.Likelihood, int]] = {  # with the number of targets
    "classes": (likelihoods.Categorical(K), 1),
    "label": (likelihoods.Bernoulli(), 1),
    "labels": (likelihoods.Bernoulli(), 2),
    "number, known noise": (likelihoods.Gaussian(0.5), 1),
    "numbers": (likelihoods.Gaussian(), 2),
    "numbers, tied": (likelihoods.MultivariateGaussian(), 2),
    "noise of its own": (likelihoods.HeteroscedasticGaussian(), 1),
    "outliers": (likelihoods.StudentT(), 2),
    "count": (likelihoods.Poisson(), 1),
    "counts": (likelihoods.NegativeBinomial(), 2),
    "ordered classes": (likelihoods.Ordinal(3), 1),
}
INFERENCES: dict[str, inference.Inference] = {
    "exact": bll.Exact(),
    "exact, conjugate": bll.Exact(noise=bll.noises.Conjugate()),
    "Laplace, diagonal": bll.Laplace(bll.curvatures.Diagonal(), scale_criterion=bll.criteria.Evidence()),
    "Laplace, Kronecker": bll.Laplace(bll.curvatures.Kronecker()),
    "Laplace, full": bll.Laplace(bll.curvatures.Full(), scale_criterion=bll.criteria.Evidence()),
    "NUTS": bll.NUTS(num_warmup=4, num_samples=4, num_chains=2, num_processes=1),
    "joint": bll.SVI(backbone_learning_rate=1e-3, num_epochs=1, final_stage=False),
}
EARLIER = "posterior of earlier rows"


def leaders_first[T](table: dict[str, T]) -> tuple[list[str], int]:
    """Names in the table with the first of each class in front, and the number of classes."""
    classes = [type(member) for member in table.values()]
    first = [name for i, name in enumerate(table) if classes[i] not in classes[:i]]
    return [*first, *(name for name in table if name not in first)], len(first)


leading, NUM_PRIORS = leaders_first(PRIORS)  # how many classes
PRIOR_NAMES = [*leading[:NUM_PRIORS], EARLIER, *leading[NUM_PRIORS:]]
NUM_PRIORS += 1
GUIDE_NAMES, NUM_GUIDES = leaders_first(GUIDES)


@dataclass(frozen=True)
class Case:
    """What is declared, by the names in the tables; ``by`` is a guide or an inference."""

    prior: str
    by: str
    likelihood: str
    option: int

    @property
    def bias(self) -> bool:
        return self.option % 2 == 0

    @property
    def standardize(self) -> bool:
        return self.option < 2

    @property
    def num_outputs(self) -> int:
        return LIKELIHOODS[self.likelihood][0].num_outputs(target_shape(self.likelihood))

    @property
    def layer(self) -> bll.LastLayer:
        prior = PRIORS[self.prior] if self.prior in PRIORS else earlier(self.likelihood, self.option)
        likelihood = LIKELIHOODS[self.likelihood][0]
        return bll.LastLayer(likelihood, prior, bias=self.bias, standardize=self.standardize)

    @property
    def inference(self) -> inference.Inference:
        if self.by in INFERENCES:
            return INFERENCES[self.by]
        return bll.SVI(guide=GUIDES[self.by], num_epochs=2)

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """In double precision where a summit is searched for."""
        features, targets = data(self.likelihood)
        wide = self.by in INFERENCES and self.by != "joint"
        return (
            (features.double(), targets.double() if targets.is_floating_point() else targets)
            if wide
            else (features, targets)
        )


def target_shape(likelihood: str) -> tuple[int, ...]:
    num_targets = LIKELIHOODS[likelihood][1]
    return (num_targets,) if num_targets > 1 else ()


def data(name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features ``[N, 3]`` and targets ``[N]`` or ``[N, T]`` that depend on them."""
    likelihood, num_targets = LIKELIHOODS[name]
    random = generator(seed)
    features = 2 + 1.5 * torch.randn(NUM_ROWS, D, generator=random)
    signal = (features - 2) @ torch.tensor([[0.6, -0.3, 0.0], [0.0, 0.5, 0.2]]).mT
    numbers = signal + 0.5 * torch.randn(NUM_ROWS, 2, generator=random)
    if likelihood.is_discrete:
        count = likelihood.num_classes
        return features, numbers[:, 0].argsort().argsort() * count // NUM_ROWS
    if likelihood.is_binary:
        numbers = (numbers > 0).float()
    elif likelihood.is_count:
        numbers = (1 + numbers).clamp_min(0).round()
    return features, numbers if num_targets > 1 else numbers[:, 0]


@cache
def earlier(likelihood: str, option: int) -> priors.Prior:
    """The posterior of other rows of the same kind, as a prior."""
    case = Case("normal, per output", "full-rank", likelihood, option)
    return bll.fit(case.layer, data(likelihood, seed=1), inference=case.inference).as_prior()


def option_of(i: int, j: int, k: int) -> int:
    """Which of the four ways, with or without bias and standardisation, a triple runs; any rule that passes test_design."""
    return (i + i // 2 + j + j // 4 + k) % 4


def is_whole(i: int, j: int, k: int) -> bool:
    """Whether a triple belongs to the product of the classes."""
    return i < NUM_PRIORS and j < NUM_GUIDES


def is_costly(i: int, j: int, k: int) -> bool:
    """Whether a triple belongs to the costlier part."""
    return k == (i + j) % len(LIKELIHOODS)


def takes_its_turn(by: str, i: int, k: int) -> bool:
    """Whether another inference runs over a pair of prior and likelihood."""
    if by.startswith("exact"):
        return True
    if by.startswith("Laplace"):
        return (list(INFERENCES).index(by) + i + k) % 3 == 0
    return k == i % len(LIKELIHOODS)


@dataclass(frozen=True)
class Refusal:
    """Combinations that cannot work, and the error that says so."""

    applies: Callable[[Case, bll.LastLayer], bool]
    message: str


def centred_for_two(case: Case, layer: bll.LastLayer) -> bool:
    return case.num_outputs != K and case.prior in (
        "normal, given", "laplace, given", "student-t, given", "hierarchical, per output", "horseshoe, given",
        "spike and slab, given", "any, one for each",
    )  # fmt: skip


def without_closed_form(case: Case, layer: bll.LastLayer) -> bool:
    return case.by.startswith("exact") and not (
        isinstance(layer.likelihood, likelihoods.Gaussian)
        and isinstance(layer.prior, (priors.Normal, priors.Posterior))
    )


def tied_noise_in_closed_form(case: Case, layer: bll.LastLayer) -> bool:
    return case.by.startswith("exact") and isinstance(layer.likelihood, likelihoods.MultivariateGaussian)


def known_noise_to_be_found(case: Case, layer: bll.LastLayer) -> bool:
    return case.by == "exact, conjugate" and layer.likelihood == likelihoods.Gaussian(0.5)


def posterior_and_unknown_noise(case: Case, layer: bll.LastLayer) -> bool:
    return case.by.startswith("exact") and case.prior == EARLIER and case.likelihood == "numbers"


def mode_that_says_little(case: Case, layer: bll.LastLayer) -> bool:
    return case.by.startswith("Laplace") and not isinstance(
        layer.prior, (priors.GaussianPrior, priors.Posterior)
    )


def dependent_weights_with_a_kronecker_curvature(case: Case, layer: bll.LastLayer) -> bool:
    return case.by == "Laplace, Kronecker" and isinstance(layer.prior, priors.Posterior)


def no_density_to_follow(case: Case, layer: bll.LastLayer) -> bool:
    return case.by == "NUTS" and case.prior == "any, dependent"


def moving_features_under_a_posterior(case: Case, layer: bll.LastLayer) -> bool:
    return case.by == "joint" and isinstance(layer.prior, priors.Posterior)


def function_with_other_sites(case: Case, layer: bll.LastLayer) -> bool:
    model = Model(layer, D, target_shape(case.likelihood))
    return case.by == "custom function" and (not case.bias or model.global_sites.num > 0)


def function_of_another_shape(case: Case, layer: bll.LastLayer) -> bool:
    return case.by == "custom function" and case.num_outputs != K


CANNOT = [  # the first that applies
    Refusal(centred_for_two, r"expected .* the weight's \[1, 3\] .*got \[2, 3\]"),
    Refusal(tied_noise_in_closed_form, r"Exact: expected targets with independent noise.*bll\.SVI\(\)"),
    Refusal(
        without_closed_form, r"Exact: expected .*for which the posterior has no closed form; use bll\.SVI"
    ),
    Refusal(known_noise_to_be_found, r"Exact\(noise=.*expected an unknown noise scale.*drop one of the two"),
    Refusal(
        posterior_and_unknown_noise,
        r"expected a known noise scale with a posterior as the prior.*bll\.SVI\(\)",
    ),
    Refusal(
        mode_that_says_little,
        r"Laplace: expected a prior that is Gaussian given.*bll\.SVI\(\) or bll\.NUTS\(\)",
    ),
    Refusal(
        dependent_weights_with_a_kronecker_curvature,
        r"expected a prior of independent weights.*curvatures\.Full\(\)",
    ),
    Refusal(no_density_to_follow, r"NUTS: expected a prior of independent weights .*bll\.SVI\(\)"),
    Refusal(
        moving_features_under_a_posterior,
        "Posterior: expected frozen features.*leave backbone_learning_rate at None",
    ),
    Refusal(function_with_other_sites, "expected a guide with the sample sites .*with the same names"),
    Refusal(function_of_another_shape, r"expected the site weight of shape \[1, 3\], got \[2, 3\]"),
]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of each kind in the warm start, one draw for the reported ELBO, few draws of guides."""
    for room, name, value in (
        (start, "NUM_STEPS", 1), (start, "NUM_SCALE_STEPS", 1), (start, "NUM_ROUNDS", 2), (start, "MAX_EASY_ROUNDS", 1),
        (gaussian_start, "MAX_ROUNDS", 1), (objective, "NUM_DRAWS", 1), (objective, "NUM_GUIDE_DRAWS", 8),
    ):  # fmt: skip
        monkeypatch.setattr(room, name, value)


def from_the_prior(
    layer: bll.LastLayer, sites: Any, rows: DesignRows, num_outputs: int, learned: Any
) -> guides.Start:
    """The start of the cheap fits: the prior's centre, scales of 0.3."""
    loc = layer.center(rows[:][0].new_zeros(num_outputs, rows.num_columns))
    return guides.Start(start.median_sites(sites, loc), loc, torch.full_like(loc, 0.3), D)


@contextmanager
def named(case: Case) -> Iterator[None]:
    """Say which case it was."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        error.add_note(f"in {case}")
        raise


def run(case: Case, takes_its_turn: bool = True, calibration: Any = bll.AUTOMATIC) -> bll.Fit | None:
    """The fit of a case that can work, if it is its turn; None after the right error of one that cannot."""
    layer = case.layer
    refusal = next((r for r in CANNOT if r.applies(case, layer)), None)
    backbone = nn.Linear(D, D) if case.by == "joint" else None
    if refusal is not None:
        with pytest.raises((TypeError, ValueError), match=refusal.message):
            bll.fit(layer, case.data, backbone, case.inference)
        return None
    if not takes_its_turn:
        return None
    return bll.fit(layer, case.data, backbone, case.inference, calibration=calibration)


def check_predictions(fit: bll.Fit, case: Case) -> None:
    """Finite densities, and a decomposition that adds up."""
    features, targets = case.data
    prediction = fit.predict(features)
    log_prob = prediction.log_prob(targets)
    assert log_prob.shape == (NUM_ROWS,)
    assert bool(log_prob.isfinite().all())
    assert bool((prediction.aleatoric > 0).all() and (prediction.epistemic >= 0).all())
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)


def check_draws(fit: bll.Fit, case: Case) -> None:
    """The declared sites, in their shapes and supports."""
    found, posterior = fit.posterior.sample(3, seed=1), fit.posterior
    shapes = {name: tuple(prior.event_shape) for name, prior in posterior.global_sites.priors.items()}
    shapes["weight"] = (case.num_outputs, D)
    if case.bias:
        shapes["bias"] = (case.num_outputs,)
    assert {name: tuple(value.shape[2:]) for name, value in found.items()} == shapes
    assert all(bool(value.isfinite().all()) for value in found.values())
    for name, prior in posterior.global_sites.priors.items():
        assert bool(prior.support.check(found[name]).all())
    assert posterior.learned.keys() == fit.layer.prior.learned_start((case.num_outputs, D)).keys()


def check_tree(fit: bll.Fit, case: Case) -> None:
    """All groups, with finite densities, and the fit's own draws."""
    tree = fit.to_datatree(*case.data, num_draws=4, prior=4)
    assert set(tree.children) == {
        "posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "log_prior",
        "observed_data", "constant_data", "sample_stats",
    }  # fmt: skip
    for group in ("posterior", "prior"):
        assert set(tree[group].data_vars) == set(fit.posterior.sample(1))
    for group in ("log_likelihood", "log_prior", "sample_stats"):
        for name, values in tree[group].data_vars.items():
            assert bool(values.notnull().all()), (group, name)
    assert tree["log_likelihood"]["y"].sizes["obs"] == NUM_ROWS
    np.testing.assert_allclose(
        tree["sample_stats"]["log_p"],
        sum(v.sum([d for d in v.dims if d not in ("chain", "draw")]) for v in tree["log_prior"].data_vars.values())
        + tree["log_likelihood"]["y"].sum([d for d in tree["log_likelihood"]["y"].dims if d not in ("chain", "draw")]),
        rtol=1e-4,
    )  # fmt: skip


def check_file(fit: bll.Fit, case: Case, folder: Path) -> None:
    """What comes back says the same to the last bit; a function has no name to be written."""
    if case.by == "custom function":
        with pytest.raises(TypeError, match="cannot be written to a file; write a subclass"):
            fit.save(folder)
        return
    fit.save(folder)
    again = bll.load(folder, backbone=None if fit.backbone is None else nn.Linear(D, D))
    assert (again.layer, again.inference) == (fit.layer, fit.inference)
    assert (again.seed, again.num_rows) == (fit.seed, fit.num_rows)
    assert again.trace.statistics.get("elbo") == fit.trace.statistics.get("elbo")
    features, targets = case.data
    assert torch.equal(again.predict(features).log_prob(targets), fit.predict(features).log_prob(targets))
    draws, same = fit.posterior.sample(3, seed=2), again.posterior.sample(3, seed=2)
    assert draws.keys() == same.keys() and all(torch.equal(draws[name], same[name]) for name in draws)


def check_particles(case: Case) -> None:
    """Three particles of guide and model at once have the log densities of three runs, and gradients."""
    layer, (inputs, targets), guide = case.layer, case.data, GUIDES[case.by]
    with isolated(0):
        features = Features.from_tensors(inputs, targets)
        checked = layer.likelihood.check_targets(targets)
        frame = make_frame(
            layer, features, checked, guide.can_rotate and layer.prior.can_rotate, torch.float32
        )
        rows, layer = DesignRows(features, checked, frame), layer.in_frame(frame).rotated(frame.rotation)
        model = Model(layer, D, target_shape(case.likelihood))
        begin = from_the_prior(layer, model.global_sites, rows, model.num_outputs, {})
        built = guide.build(model, begin)
        arguments = (rows[:][0][:, :D], rows[:][1], NUM_ROWS)
        built(*arguments)
        with pyro.plate("particles", 3, dim=-2):
            ours = poutine.trace(built).get_trace(*arguments)
            theirs = poutine.trace(poutine.replay(model, trace=ours)).get_trace(*arguments)
        programs = [(ours, built), (theirs, model)]
        if case.by == "custom messenger":  # it writes down what a replay would overwrite
            del programs[0]
        for together, program in programs:
            together.compute_log_prob()
            sites = {
                name: site
                for name, site in together.iter_stochastic_nodes()
                if name != "data" and name != "particles"
            }
            drawn = {name: site for name, site in sites.items() if not isinstance(site["fn"], dist.Delta)}
            for particle in range(3):
                one = poutine.Trace()
                for name, site in drawn.items():
                    one.add_node(name, **{**site, "value": site["value"][particle, 0], "infer": {}})
                alone = poutine.trace(poutine.replay(program, trace=one)).get_trace(*arguments)
                alone.compute_log_prob()
                for name in sites:
                    found = together.nodes[name]["log_prob"][particle].sum()
                    torch.testing.assert_close(
                        found, alone.nodes[name]["log_prob"].sum(), rtol=1e-4, atol=1e-4
                    )
        Trace_ELBO(num_particles=3, vectorize_particles=True)(model, built)(*arguments).backward()
        gradients = [parameter.grad for parameter in built.parameters()]
        assert gradients and all(g is not None and bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("guide", GUIDE_NAMES)
@pytest.mark.parametrize("prior", PRIOR_NAMES)
@pytest.mark.thinned(11)
def test_every_prior_guide_and_likelihood(
    prior: str, guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    i, j = PRIOR_NAMES.index(prior), GUIDE_NAMES.index(guide)
    for k, likelihood in enumerate(LIKELIHOODS):
        if not is_whole(i, j, k) and not is_costly(i, j, k):
            continue
        case = Case(prior, guide, likelihood, option_of(i, j, k))
        with named(case), monkeypatch.context() as patch:
            if not is_costly(i, j, k):
                patch.setattr(svi, "warm_start", from_the_prior)
                patch.setattr(svi, "dense_start", lambda *arguments: arguments[3])
            fit = run(case, calibration=bll.AUTOMATIC if is_costly(i, j, k) else None)
            if fit is None:
                continue
            assert math.isfinite(fit.elbo) and fit.trace.finite
            check_predictions(fit, case)
            check_draws(fit, case)
            if is_costly(i, j, k):
                check_tree(fit, case)
                check_file(fit, case, tmp_path / "fit")
                check_particles(case)


# so few draws and rows are no good
@pytest.mark.filterwarnings("ignore:NUTS. :RuntimeWarning", "ignore:the evidence is flat:RuntimeWarning")
@pytest.mark.parametrize("by", INFERENCES)
@pytest.mark.parametrize("prior", PRIOR_NAMES)
@pytest.mark.thinned(8)
def test_every_other_inference(prior: str, by: str, tmp_path: Path) -> None:
    i, j = PRIOR_NAMES.index(prior), list(INFERENCES).index(by)
    for k, likelihood in enumerate(LIKELIHOODS):
        case = Case(prior, by, likelihood, option_of(i, j, k))
        with named(case):
            fit = run(case, takes_its_turn(by, i, k))
            if fit is None:
                continue
            check_predictions(fit, case)
            check_draws(fit, case)
            check_tree(fit, case)
            check_file(fit, case, tmp_path / str(k))


def test_design() -> None:
    """Each pair of the whole product meets all four ways; the costlier part each pair of lines, and each line all four."""
    sizes, classes = (
        (len(PRIOR_NAMES), len(GUIDES), len(LIKELIHOODS)),
        (NUM_PRIORS, NUM_GUIDES, len(LIKELIHOODS)),
    )
    triples = list(product(*map(range, sizes)))
    costly, whole = ([t for t in triples if chosen(*t)] for chosen in (is_costly, is_whole))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        ways = {(t[one], t[other], option_of(*t)) for t in whole}
        assert ways == set(product(range(classes[one]), range(classes[other]), range(4)))
        assert {(t[one], t[other]) for t in costly} == set(product(range(sizes[one]), range(sizes[other])))
    for family, size in enumerate(sizes):
        assert {(t[family], option_of(*t)) for t in costly} == set(product(range(size), range(4)))
    for pair in product(range(sizes[0]), range(sizes[2])):
        assert sum(by.startswith("Laplace") and takes_its_turn(by, *pair) for by in INFERENCES) == 1


def test_every_member_is_in_its_table() -> None:
    tables: list[tuple[Any, type, Iterable[object]]] = [
        (priors, priors.Prior, [*PRIORS.values(), earlier("numbers", 0)]),
        (guides, guides.Guide, GUIDES.values()),
        (likelihoods, likelihoods.Likelihood, [likelihood for likelihood, _ in LIKELIHOODS.values()]),
        (inference, inference.Inference, INFERENCES.values()),
        (
            bll.curvatures,
            bll.curvatures.Curvature,
            [v.curvature for v in INFERENCES.values() if isinstance(v, bll.Laplace)],
        ),
    ]
    for room, family, members in tables:
        classes = {getattr(room, name) for name in room.__all__}
        declared = {c for c in classes if isinstance(c, type) and issubclass(c, family) and is_dataclass(c)}
        assert {type(member) for member in members} == declared


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", PRIORS)
def test_layers_as_yaml(prior: str, likelihood: str) -> None:
    i, k = list(PRIORS).index(prior), list(LIKELIHOODS).index(likelihood)
    check_yaml(Case(prior, "", likelihood, option_of(i, 0, k)).layer)


@pytest.mark.parametrize("by", [*(name for name in GUIDES if name != "custom function"), *INFERENCES])
def test_inferences_as_yaml(by: str) -> None:
    check_yaml(Case("normal", by, "classes", 0).inference)


def check_yaml(declared: Any) -> None:
    """Written and read back: equal, of equal hash, and unlike a declaration with another number."""
    tensors: dict[str, Tensor] = {}
    text = yaml.safe_dump(to_plain(declared, tensors))
    again = from_plain(yaml.safe_load(text), {name: value.clone() for name, value in tensors.items()})
    assert again == declared and hash(again) == hash(declared)
