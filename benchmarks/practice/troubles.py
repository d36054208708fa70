"""Advice on what to do when a fit goes wrong."""

from dataclasses import replace

import numpy as np
import torch

import bll_pyro as bll
from benchmarks.options import Options
from benchmarks.practice.finding import Finding
from benchmarks.practice.seen_rows import seen_and_new
from benchmarks.practice.splits import Split, loss, mean, overconfidence, seeds, split_of
from benchmarks.report import Table, Target

LARGE_KL, OVERCONFIDENT, UNSTABLE = "KL too large", "Overconfident", "Unstable"
NOT_A_NUMBER, MEMORY = "NaN", "Out of memory"


def kl_per_row(options: Options) -> Finding:
    """The KL divergence in nats as rows are added."""
    columns = {"rows": "rows", "kl": "KL, nats", "row": "KL a row", "nll": "test NLL"}
    table = Table("KL divergence of a default fit, digits", columns)
    for rows in (100, 300, 900):
        found: dict[str, list[float]] = {"kl": [], "nll": []}
        for seed in seeds(options):
            split = split_of("digits", rows, seed)
            fit = bll.fit(split.layer(), split.train, seed=seed)
            outputs, random = fit.posterior.outputs(split.train[0]), torch.Generator().manual_seed(0)
            draws = outputs.loc + outputs.scale * torch.randn(200, *outputs.loc.shape, generator=random)
            expected = draws.log_softmax(-1).mean(0).gather(-1, split.train[1][:, None]).sum()
            found["kl"].append(float(expected) - fit.elbo)
            found["nll"].append(loss(fit, split))
        table.rows.append(
            {
                "rows": rows,
                "kl": mean(found["kl"]),
                "row": mean(found["kl"]) / rows,
                "nll": mean(found["nll"]),
            }
        )
    first, last = table.rows[0], table.rows[-1]
    target = Target(
        "KL a row with 900 rows over that with 100", float(last["row"]) / float(first["row"]), 0.5
    )
    return Finding(LARGE_KL, "A KL of hundreds of nats is no fault", target, table)


def kl_weight(options: Options) -> Finding:
    """Coverage of intervals of the mean where the KL divergence is weighted down; the truth is known."""
    columns = {
        "weight": "weight of the KL",
        "inside": "90% intervals of the mean that hold it",
        "nll": "test NLL",
    }
    table = Table("Linear data, 60 rows of 20 features, noise 0.5, prior as the data were made", columns)
    layer = bll.LastLayer(
        bll.likelihoods.Gaussian(0.5), bll.priors.Normal(0.3), bias=False, standardize=False
    )
    for weight in (1.0, 0.5, 0.1, 0.01):
        inside, losses = [], []
        for seed in range(4 if options.small else 40):
            random = torch.Generator().manual_seed(seed)
            weights = 0.3 * torch.randn(20, generator=random)
            inputs, rows = (torch.randn(n, 20, generator=random) for n in (60, 200))
            targets, new = (x @ weights + 0.5 * torch.randn(len(x), generator=random) for x in (inputs, rows))
            power = torch.full((60,), 1 / weight)
            fit = bll.fit(layer, (inputs, targets), inference=bll.Exact(), sample_weight=power)
            prediction = fit.predict(rows)
            distance = (prediction.mean - rows @ weights).abs() / prediction.epistemic.sqrt()
            inside.append(float((distance < 1.6449).double().mean()))
            losses.append(-float(prediction.log_prob(new).double().mean()))
        table.rows.append({"weight": weight, "inside": mean(inside), "nll": mean(losses)})
    held = {row["weight"]: float(row["inside"]) for row in table.rows}
    target = Target("share of 90% intervals of the mean that hold it, KL weight 0.1", held[0.1], 0.85, ">=")
    return Finding(LARGE_KL, "Give the KL a weight of 0.1", target, table)


def calibrate(options: Options) -> Finding:
    """Remedies for a layer on features of seen rows, which is too sure."""
    columns = {"method": "remedy", "nll": "test NLL", "sure": "confidence less accuracy"}
    table = Table("A layer on 500 rows that its network was trained on", columns)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds(options):
        split, new = _seen(seed)
        fit = bll.fit(split.layer(), split.train, calibration=None, seed=seed)
        richer = bll.SVI(bll.guides.LowRank(8), num_epochs=5 if options.small else None)
        many = bll.fit(split.layer(), split.train, inference=richer, calibration=None, seed=seed)
        wide = bll.fit(split.layer(10 * _scale(fit)), split.train, calibration=None, seed=seed)
        remedies = {
            "none": fit,
            "a prior ten times as wide": wide,
            "a richer guide, `LowRank(8)`": many,
            "`bll.calibrate` on 100 new rows": bll.calibrate(fit, new[0][:100], new[1][:100]),
        }
        for name, one in remedies.items():
            found.setdefault(name, []).append((loss(one, split), overconfidence(one, split)))
    for name, values in found.items():
        table.rows.append(
            {"method": name, "nll": mean([v for v, _ in values]), "sure": mean([v for _, v in values])}
        )
    nll = {row["method"]: float(row["nll"]) for row in table.rows}
    ratio = nll["`bll.calibrate` on 100 new rows"] / nll["none"]
    target = Target("test NLL after calibration on 100 new rows over that before", ratio, 0.95)
    return Finding(OVERCONFIDENT, "Calibrate on rows that neither network nor layer has seen", target, table)


def wider_prior(options: Options) -> Finding:
    """Confidence less accuracy by the prior scale, without a temperature."""
    columns = {
        "factor": "prior scale over the learned one",
        "nll": "test NLL",
        "sure": "confidence less accuracy",
    }
    table = Table("A layer on seen rows, by prior scale", columns)
    for factor in (1.0, 10.0) if options.small else (0.1, 0.3, 1.0, 3.0, 10.0):
        found: dict[str, list[float]] = {"nll": [], "sure": []}
        for seed in seeds(options):
            split, _ = _seen(seed)
            learned = bll.fit(split.layer(), split.train, calibration=None, seed=seed)
            fit = bll.fit(split.layer(factor * _scale(learned)), split.train, calibration=None, seed=seed)
            found["nll"].append(loss(fit, split))
            found["sure"].append(overconfidence(fit, split))
        table.rows.append({"factor": factor, **{key: mean(values) for key, values in found.items()}})
    at = {row["factor"]: float(row["sure"]) for row in table.rows}
    target = Target(
        "confidence less accuracy at ten times the scale, less that at the learned scale",
        at[10.0] - at[1.0],
        0.0,
    )
    return Finding(OVERCONFIDENT, "Widen the prior, to be less certain", target, table)


def smaller_steps(options: Options) -> Finding:
    """Remedies for steps that are too large."""
    table = Table(
        "Steps that are too large: digits, 900 rows, a rate of 0.5",
        {"method": "remedy", "elbo": "ELBO a row"},
        _steps(options),
    )
    elbo = {row["method"]: float(row["elbo"]) for row in table.rows}
    target = Target(
        "ELBO a row gained by the default rate, nats", elbo["the default rate"] - elbo["none"], 0.1, ">="
    )
    return Finding(UNSTABLE, "Lower the rate of the last layer", target, table)


def clip_gradients(options: Options) -> Finding:
    """Clipping beside the same rate without it."""
    elbo = {str(row["method"]): float(row["elbo"]) for row in _steps(options)}
    target = Target("ELBO a row gained by clipping, nats", elbo["`clip_norm=1.0`"] - elbo["none"], 0.1, ">=")
    return Finding(UNSTABLE, "Clip the gradients", target)


def _steps(options: Options) -> list[dict[str, float | str]]:
    settings = {
        "none": {"learning_rate": 0.5, "batch_size": 50},
        "`clip_norm=1.0`": {"learning_rate": 0.5, "batch_size": 50, "clip_norm": 1.0},
        "batches of 300": {"learning_rate": 0.5, "batch_size": 300},
        "the default rate": {"batch_size": 50},
    }
    rows: list[dict[str, float | str]] = []
    for name, setting in settings.items():
        values = []
        for seed in seeds(options, 3):
            split = split_of("digits", 900, seed)
            inference = bll.SVI(num_epochs=2 if options.small else 20, **setting)
            values.append(
                bll.fit(split.layer(0.5), split.train, inference=inference, calibration=None, seed=seed).elbo
                / 900
            )
        rows.append({"method": name, "elbo": mean(values)})
    return rows


def far_from_zero(options: Options) -> Finding:
    """Inputs far from 0, standardised by the library, and by hand in float32."""
    columns = {
        "offset": "added to all inputs",
        "ours": "test NLL, bll_pyro",
        "float32": "test NLL, standardised by hand in float32",
    }
    table = Table("Inputs far from zero: wine, 100 rows", columns)
    for offset in (0.0, 1e4, 1e6, 1e8):
        found: dict[str, list[float]] = {"ours": [], "float32": []}
        for seed in seeds(options):
            split = split_of("wine", 100, seed)
            far = [inputs.double() + offset for inputs in (split.train[0], split.test[0])]
            ours = Split((far[0], split.train[1]), (far[1], split.test[1]), split.likelihood)
            found["ours"].append(loss(bll.fit(ours.layer(), ours.train, seed=seed), ours))
            single = [inputs.float() for inputs in far]
            center, scale = single[0].mean(0), single[0].std(0).clamp_min(1e-6)
            rows = [(inputs - center) / scale for inputs in single]
            hand = Split((rows[0], split.train[1]), (rows[1], split.test[1]), split.likelihood)
            found["float32"].append(loss(bll.fit(hand.layer(), hand.train, seed=seed), hand))
        table.rows.append({"offset": f"{offset:g}", **{key: mean(values) for key, values in found.items()}})
    ours = [float(row["ours"]) for row in table.rows]
    target = Target("test NLL at an offset of 1e8 over that at 0", ours[-1] / ours[0], 1.05)
    return Finding(
        NOT_A_NUMBER,
        "Give inputs far from zero in float64",
        target,
        table,
    )


def smaller_guide(options: Options) -> Finding:
    """Numbers that a guide holds, for a small and a large layer, and what it predicts."""
    columns = {
        "method": "guide", "small": "numbers, 10 x 65 weights", "large": "GiB, 1,000 x 2,049 weights",
        "elbo": "ELBO a row", "nll": "test NLL",
    }  # fmt: skip
    table = Table("Memory of the guides, digits, 300 rows", columns)
    guides = (
        bll.guides.MAP(),
        bll.guides.Diagonal(),
        bll.guides.LowRank(8),
        bll.guides.MatrixNormal(),
        bll.guides.BlockDiagonal(),
    )
    for guide in guides if options.small else (*guides, bll.guides.FullRank()):
        found: dict[str, list[float]] = {"elbo": [], "nll": []}
        for seed in seeds(options, 2):
            split = split_of("digits", 300, seed)
            inference = bll.SVI(guide, num_epochs=2 if options.small else None)
            fit = bll.fit(split.layer(), split.train, inference=inference, seed=seed)
            found["elbo"].append(float("nan") if isinstance(guide, bll.guides.MAP) else fit.elbo / 300)
            found["nll"].append(loss(fit, split))
        numbers = {"small": guide.num_numbers(10, 65), "large": guide.num_numbers(1000, 2049) * 4 / 2**30}
        table.rows.append(
            {"method": repr(guide), **numbers, **{key: mean(values) for key, values in found.items()}}
        )
    nll = [float(row["nll"]) for row in table.rows]
    target = Target("test NLL of Diagonal over the lowest of all guides", nll[1] / min(nll), 1.05)
    return Finding(MEMORY, "Take a smaller guide", target, table)


def _seen(seed: int) -> tuple[Split, tuple[torch.Tensor, ...]]:
    """Features of 500 rows that the network was trained on, and of 250 new ones."""
    split, seen, new, _ = seen_and_new(seed)
    return replace(split, train=seen), new


def _scale(fit: object) -> float:
    return float(np.exp(np.mean([float(v.log().mean()) for v in fit.posterior.learned.values()])))
