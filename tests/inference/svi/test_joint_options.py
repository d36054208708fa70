"""Each option of joint training against something that does without the library's code for it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import bll_pyro as bll
from bll_pyro.checkpoint import folder as checkpoints
from bll_pyro.inference.prior_scale.held_out import held_out_loss
from bll_pyro.inference.svi import joint
from bll_pyro.inference.svi.joint_training import JointTraining
from bll_pyro.inference.svi.objective import Objective
from bll_pyro.inference.svi.train import Stepper
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.optimizers import Adam
from bll_pyro.scope import generator, isolated

N = 64
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, 0] + 0.3 * torch.randn(N, generator=torch.Generator().manual_seed(1))
LAYER = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Normal(1.0))
RAW = replace(LAYER, standardize=False)
JOINT = bll.SVI(backbone_learning_rate=1e-2, num_epochs=4, batch_size=8, final_stage=False)
pytestmark = pytest.mark.filterwarnings("ignore:no rows were kept:RuntimeWarning")


def network(norm: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = [nn.BatchNorm1d(5)] if norm else []
        return nn.Sequential(nn.Linear(6, 5), *middle, nn.Tanh(), nn.Linear(5, 4))


class Steps:
    """A fit, with what was seen after each step."""

    def __init__(self, patch: pytest.MonkeyPatch, look: Callable[[JointTraining], Any]) -> None:
        self.seen: list[Any] = []
        end = JointTraining.end_step

        def ended(training: JointTraining, *arguments: Any) -> None:
            end(training, *arguments)
            self.seen.append(look(training))

        patch.setattr(JointTraining, "end_step", ended)

    def fit(self, svi: bll.SVI = JOINT, net: nn.Module | None = None, **options: Any) -> bll.Fit:
        training = bll.BackboneTraining(**options)
        self.seen.clear()
        return bll.fit(LAYER, (X, Y), net or network(), replace(svi, training=training), calibration=None)


def rates(training: JointTraining) -> list[float]:
    return [group["lr"] for group in training.first_optimizer.param_groups]


def numbers(training: JointTraining) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.module.backbone.state_dict().items()}


def prepared(layer: bll.LastLayer, net: nn.Module, svi: bll.SVI = JOINT, **options: Any) -> JointTraining:
    with isolated(0, torch.float32):
        rows = TrainingData.of(layer, (X, Y))
        return joint._prepared(svi, bll.BackboneTraining(**options), layer, net, rows, 0, None, None)


def test_the_default_is_what_no_options_are() -> None:
    plain, given = (
        bll.fit(LAYER, (X, Y), network(), svi, calibration=None)
        for svi in (JOINT, replace(JOINT, training=bll.BackboneTraining()))
    )
    assert torch.equal(plain.predict(X).mean, given.predict(X).mean)
    assert torch.equal(plain.trace.elbo, given.trace.elbo)


# ---- rates


def half_cosine(steps: np.ndarray, length: int) -> np.ndarray:
    return 0.5 * (1 + np.cos(np.pi * steps / length))


def test_rates_of_warm_up_and_half_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten epochs of 8 steps: two frozen, one and a half of warm-up, the rest along the half cosine; the guide's from the start."""
    steps = Steps(monkeypatch, rates)
    steps.fit(replace(JOINT, num_epochs=10), frozen_epochs=2, warmup=1.5)
    guide, backbone = np.array(steps.seen).T
    t = np.arange(64)
    expected = np.where(t < 12, (t + 1) / 13, half_cosine((t - 12).clip(0), 52))
    np.testing.assert_allclose(backbone[16:], 1e-2 * expected, rtol=1e-12)
    np.testing.assert_allclose(guide, 1e-2 * half_cosine(np.arange(80), 80), rtol=1e-12)


def test_a_constant_rate_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, rates)
    steps.fit(schedule="constant", warmup=1)
    np.testing.assert_allclose(
        np.array(steps.seen)[:, 1], 1e-2 * np.minimum(np.arange(1, 33) / 9, 1.0), rtol=1e-12
    )


def test_rates_of_a_scheduler_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate at each step is the one that the scheduler gives by itself; it does not move on the frozen backbone."""
    scheduler = bll.Imported("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.1})
    steps = Steps(monkeypatch, rates)
    steps.fit(schedule=scheduler, frozen_epochs=1)
    weight = nn.Parameter(torch.zeros(1))
    alone = torch.optim.Adam([weight], lr=1e-2)
    reference = torch.optim.lr_scheduler.OneCycleLR(alone, max_lr=0.1, total_steps=24)
    expected = []
    for _ in range(24):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        reference.step()
    np.testing.assert_allclose(np.array(steps.seen)[8:, 1], expected, rtol=1e-12)


def test_layers_have_their_rates_and_only_weights_of_the_backbone_decay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def groups(training: JointTraining) -> list[tuple[float, float]]:
        return [(g["lr"], g.get("weight_decay", 0.0)) for g in training.first_optimizer.param_groups]

    steps = Steps(monkeypatch, groups)
    steps.fit(optimizer="adamw", schedule="constant", layer_decay=0.5, weight_decay=0.1)
    guide, *backbone = steps.seen[0]
    assert guide == (0.01, 0.0)
    assert backbone == [(0.005, 0.0), (0.005, 0.1), (0.01, 0.0), (0.01, 0.1)]


def test_decay_leaves_guide_norms_and_biases_alone() -> None:
    """A step of SGD with decay and without: weights differ by rate x decay x weight, all else by nothing."""
    found = []
    for decay in (0.0, 0.1):
        torch.manual_seed(0)
        training = prepared(LAYER, network(), optimizer="sgd", weight_decay=decay)
        before = [p.detach().clone() for p in training.module.parameters()]
        training.gradient((X, Y[:, None], bll.Data(X).columns(N, False, "")))
        training.end_step(0, None)
        named = dict(training.module.named_parameters())
        found.append({name: p.detach() for name, p in named.items()})
        start = dict(zip(named, before, strict=True))
    for name, plain in found[0].items():
        decays = name in ("backbone.0.weight", "backbone.3.weight")
        expected = plain - (1e-2 * 0.1 * start[name] if decays else 0.0)
        torch.testing.assert_close(found[1][name], expected, atol=1e-7, rtol=1e-6)
    assert torch.equal(found[0]["elbo.guide.loc"], found[1]["elbo.guide.loc"])


# ---- steps


@pytest.mark.parametrize("sizes", [[8, 8, 8, 8], [8, 8, 3], [8]])
def test_a_group_of_batches_has_the_gradient_of_all_its_rows(sizes: list[int]) -> None:
    """Without draws and constants of batches: those of a point, on features as they are."""
    training = prepared(RAW, network(norm=False), replace(JOINT, guide=bll.guides.MAP()), accumulate=4)
    columns = bll.Data(X).columns(N, False, "")
    found = []
    for group in (
        [(x, y, columns) for x, y in zip(X[: sum(sizes)].split(sizes), Y[: sum(sizes), None].split(sizes))],
        [(X[: sum(sizes)], Y[: sum(sizes), None], columns)],
    ):
        value = training.gradient(*group)
        found.append((value, [p.grad.clone() for p in training.module.parameters() if p.grad is not None]))
    (one, first), (other, second) = found
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert len(first) == len(second) >= 5
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("accumulate", "num_steps"), [(1, 8), (3, 3), (4, 2), (100, 1)])
def test_the_schedule_counts_groups(accumulate: int, num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, rates)
    fit = steps.fit(accumulate=accumulate)
    assert len(steps.seen) == len(fit.trace.elbo) == 4 * num_steps
    last = half_cosine(np.array([4 * num_steps - 1]), 4 * num_steps)[0]
    assert steps.seen[-1] == pytest.approx([1e-2 * last, 1e-2 * last])


def test_one_row_that_is_left_joins_the_batch_before_in_a_group() -> None:
    """BatchNorm cannot train on one row; 33 rows are four batches, of which the last has nine."""
    svi = replace(JOINT, training=bll.BackboneTraining(accumulate=3))
    fit = bll.fit(LAYER, (X[:33], Y[:33]), network(), svi, calibration=None)
    assert len(fit.trace.elbo) == 4 * 2


def test_the_guide_has_adam_beside_every_optimizer() -> None:
    training = prepared(LAYER, network(), optimizer="sgd")
    guide, backbone = training.optimizer().parts
    assert type(guide) is Adam and type(backbone) is torch.optim.SGD
    assert backbone.defaults["momentum"] == 0.9


@pytest.mark.parametrize("clip_norm", [1e-3, None])
def test_the_gradient_of_a_step_is_clipped(clip_norm: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def norm(training: JointTraining) -> float:
        return math.hypot(*(float(p.grad.norm()) for p in training.module.parameters() if p.grad is not None))

    steps = Steps(monkeypatch, norm)
    steps.fit(replace(JOINT, clip_norm=clip_norm), accumulate=2)
    assert all((found <= 1.001e-3) == (clip_norm is not None) for found in steps.seen)


def test_first_epochs_leave_the_backbone_alone_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []

    class Telling(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            modes.append(self.training)
            return super().forward(x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 5), Telling(5))
    start = {name: value.clone() for name, value in net.state_dict().items()}
    steps = Steps(monkeypatch, numbers)
    steps.fit(net=net, frozen_epochs=3, optimizer="adamw", weight_decay=0.5)
    for state in steps.seen[:24]:
        assert all(torch.equal(value, start[name]) for name, value in state.items())
    assert all(not torch.equal(value, start[name]) for name, value in steps.seen[24].items())
    during = modes[1:]  # the first is that of the dry run
    assert during == [False] * 24 + [True] * 8


# ---- averages


def test_the_fit_holds_the_moving_average(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, numbers)
    fit = steps.fit(ema_decay=0.8)
    assert fit.backbone is not None
    average = {name: value.clone() for name, value in network().state_dict().items()}
    for t, state in enumerate(steps.seen):
        decay = min(0.8, (1 + t) / (10 + t))
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value
            else:
                average[name] = value
    held = fit.backbone.state_dict()
    assert int(held["1.num_batches_tracked"]) == 32
    for name, value in average.items():
        torch.testing.assert_close(held[name], value, rtol=1e-5, atol=1e-6)
        assert name == "1.num_batches_tracked" or not torch.allclose(held[name], steps.seen[-1][name])


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_best_state_is_that_of_the_average_and_its_statistics(ema_decay: float | None) -> None:
    """Of rows whose targets have the other sign: the more is learned, the worse it gets, and an early state is the best."""
    svi = replace(JOINT, backbone_learning_rate=0.1, num_epochs=6, patience=6)
    training = bll.BackboneTraining(ema_decay=ema_decay)
    fit = bll.fit(
        LAYER, (X, Y), network(), replace(svi, training=training), validation_data=(X, -Y), calibration=None
    )
    assert np.argmin(fit.trace.validation) < 5 and len(fit.trace.validation) == 6
    assert fit.backbone is not None
    with torch.no_grad():
        features = fit.backbone(X)
    found = held_out_loss(fit.posterior, [(features, fit.posterior.frame.targets(-Y[:, None]))])
    assert found == pytest.approx(min(fit.trace.validation), abs=1e-6)


def test_patience_begins_when_the_backbone_is_trained() -> None:
    """The guide alone reaches its best on features of noise; without patience training would end there."""
    svi = replace(JOINT, num_epochs=8, patience=1, learning_rate=1e-9)
    training = bll.BackboneTraining(frozen_epochs=6)
    fit = bll.fit(
        LAYER,
        (X, Y),
        network(),
        replace(svi, training=training),
        validation_data=(X, Y + 5),
        calibration=None,
    )
    assert len(fit.trace.validation) >= 7


# ---- the weight of the KL divergence


@pytest.mark.parametrize("output_space", [True, False])
def test_the_weight_of_the_divergence(output_space: bool) -> None:
    """The objective is linear in the weight, with the divergence of the guide as its slope."""
    training = prepared(RAW, network(norm=False), replace(JOINT, output_space=output_space))
    objective: Objective = training.objective
    design = torch.cat([torch.randn(N, 4, generator=generator(3)), torch.ones(N, 1)], 1)

    def value(weight: float) -> Tensor:
        with torch.no_grad(), isolated(0, torch.float32):
            return objective(design, Y[:, None], generator(0), weight)

    one, half, tenth = value(1.0), value(0.5), value(0.1)
    torch.testing.assert_close((one - half) / 0.5, (half - tenth) / 0.4, rtol=1e-3, atol=1e-3)
    if not output_space:
        return
    latents = objective.guide.latents()
    weights = torch.distributions.Normal(latents.weights.loc, latents.marginal_scale())
    prior = torch.distributions.Normal(0.0, torch.tensor([1.0] * 4 + [RAW.bias_scale]))
    kl = torch.distributions.kl_divergence(weights, prior).sum().detach()
    noise = (half - one) / 0.5 - kl  # what is left is that of the noise scale, at one draw
    with isolated(0, torch.float32):
        draw = torch.randn(1, generator=generator(0))
    u, _ = latents.given(draw)
    _, log_prior, log_jacobian = objective.model.global_sites.constrain(u)
    entropy = latents.entropy() - weights.entropy().sum()
    torch.testing.assert_close(noise, (-(log_prior + log_jacobian) - entropy).detach(), rtol=1e-3, atol=1e-3)


def test_a_warm_up_of_the_divergence_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, lambda training: training.kl_weight)
    fit = steps.fit(kl_warmup=0.5)
    expected = [min((t + 1) / 5, 1.0) for t in range(32)]
    assert steps.seen == pytest.approx(expected)
    assert fit.trace.statistics["kl_weight"].tolist() == pytest.approx(expected)
    assert "the ELBO of the first 4 steps is no lower bound" in str(fit)
    assert "kl_weight" not in steps.fit().trace.statistics


# ---- precision and compiler


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_the_guide_is_in_full_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets that half precision would round to two digits reach the objective as they are."""
    types: set[tuple[torch.dtype, ...]] = set()
    offsets: list[float] = []
    call = Objective.__call__

    def look(objective: Objective, design: Tensor, targets: Tensor, *rest: Any) -> Tensor:
        value = call(objective, design, targets, *rest)
        if torch.is_grad_enabled():
            types.add((design.dtype, value.dtype))
            offsets.append(float(torch.cdist(targets.float(), Y[:, None]).amin(1).max()))
        return value

    monkeypatch.setattr(Objective, "__call__", look)
    inside: list[torch.dtype] = []

    class Telling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if torch.is_grad_enabled():
                inside.append(out.dtype)
            return out

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(Telling(6, 4), nn.Tanh())
    fit = bll.fit(RAW, (X, Y), net, replace(JOINT, precision=precision, num_epochs=2), calibration=None)
    kinds = {"bf16": torch.bfloat16, "64": torch.float64}
    assert set(inside) == {kinds[precision.partition("-")[0]]}
    assert types == {(torch.float64,) * 2 if precision == "64-true" else (torch.float32,) * 2}
    assert max(offsets) == 0.0
    assert torch.isfinite(fit.predict(X).log_prob(Y)).all()


def test_a_compiled_backbone_gives_the_plain_fit() -> None:
    net = network()
    plain, fit = (
        bll.fit(
            LAYER, (X, Y), net, replace(JOINT, training=bll.BackboneTraining(compile=how)), calibration=None
        )
        for how in (False, "eager")
    )
    assert type(fit.backbone) is nn.Sequential
    assert vars(fit.backbone).keys() == vars(net).keys()
    torch.testing.assert_close(fit.predict(X).mean, plain.predict(X).mean, rtol=1e-4, atol=1e-5)


def test_a_backend_that_is_not_there_is_named_before_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, rates)
    with pytest.raises(
        ValueError, match=r"compile='none'.*expected .*a compiler \(g\+\+.*leave compile at False"
    ):
        steps.fit(compile="none")
    assert not steps.seen


# ---- what does not go


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "closure": ({"optimizer": "torch.optim.LBFGS"}, "optimizer=.*(parameter groups|evaluates the loss)"),
    "no decay": (
        {"optimizer": "torch.optim.Rprop", "weight_decay": 0.1},
        "weight_decay=0.1.*Rprop, which has none",
    ),
    "no optimizer": (
        {"optimizer": "collections.OrderedDict"},
        "optimizer=.*(called as|torch.optim.Optimizer)",
    ),
    "unknown argument": ({"optimizer": bll.Imported("torch.optim.SGD", {"momentom": 1})}, "momentom"),
    "scheduler": ({"schedule": "torch.optim.lr_scheduler.StepLR"}, "schedule=.*step_size"),
    "plateau": ({"schedule": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "schedule=.*without a loss"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_factories_that_will_not_do_are_named_before_any_step(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, message = OPTIONS[kind]
    steps = Steps(monkeypatch, rates)
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        steps.fit(**options)
    assert not steps.seen


class Fading(Sampler[list[int]]):
    """Batches of fewer rows in each pass."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = iter(sizes)

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(range(next(self.sizes, 0)))
        return iter([rows[i : i + 16] for i in range(0, len(rows), 16)])


@pytest.mark.parametrize(("sizes", "passes"), [((), ""), ((64, 64), " after 64 in an earlier one")])
def test_a_pass_without_rows_is_named(sizes: tuple[int, ...], passes: str) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_sampler=Fading(64, *sizes))
    with pytest.raises(ValueError, match=f"expected rows in every pass, got none{passes}; give a loader"):
        bll.fit(LAYER, loader, network(), JOINT, calibration=None)


def test_passes_of_other_lengths_are_warned_of() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_sampler=Fading(64, 64, 48, 32, 64, 64, 64))
    with pytest.warns(bll.FitWarning, match="gave 64 rows in the first pass, and .. in a later one"):
        bll.fit(LAYER, loader, network(), JOINT, calibration=None)


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("before", [2, 7, 10, 15])
def test_a_fit_with_all_options_goes_on_where_it_was_killed(
    before: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the frozen backbone, in a pass and after one: optimizers, scheduler, average and best state are as they were."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    scheduler = bll.Imported("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.1})
    training = bll.BackboneTraining(
        "sgd", scheduler, layer_decay=0.8, accumulate=2, ema_decay=0.9, frozen_epochs=1, kl_warmup=1
    )
    given = {"inference": replace(JOINT, training=training), "validation_data": (X, Y), "calibration": None}
    whole = bll.fit(LAYER, (X, Y), network(), **given)
    step, num_steps = Stepper.step, [0]

    def killed(self: Stepper, *arguments: Any) -> Tensor:
        if num_steps[0] == before:
            raise Killed
        num_steps[0] += 1
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", killed)
        with pytest.raises(Killed):
            bll.fit(LAYER, (X, Y), network(), **given, checkpoint=tmp_path)
    again = bll.fit(LAYER, (X, Y), network(), **given, checkpoint=tmp_path)
    assert (
        torch.equal(again.trace.elbo, whole.trace.elbo) and again.trace.validation == whole.trace.validation
    )
    for value, expected in zip(
        again.backbone.state_dict().values(), whole.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(value, expected)


def test_all_options_together_are_reproducible_and_leave_the_network_alone(tmp_path: Any) -> None:
    training = bll.BackboneTraining(
        optimizer="adamw", warmup=0.5, layer_decay=0.8, weight_decay=0.01, accumulate=2, ema_decay=0.9, compile="eager",
        frozen_epochs=1, kl_warmup=1,
    )  # fmt: skip
    svi = replace(JOINT, training=training, clip_norm=1.0, precision="bf16-mixed")
    net = network()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    one, same = (bll.fit(LAYER, (X, Y), net, svi, validation_data=(X, Y), seed=3) for _ in range(2))
    assert torch.equal(one.predict(X).mean, same.predict(X).mean)
    assert all(torch.equal(value, start[name]) for name, value in net.state_dict().items())
    one.save(tmp_path)
    again = bll.load(tmp_path, backbone=network())
    assert again.inference == svi
    torch.testing.assert_close(again.predict(X).mean, one.predict(X).mean)
