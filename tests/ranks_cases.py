"""Fits that are the same by one process and by several: what they are of, which rows a rank has, and what each rank reports."""

from __future__ import annotations

import os
import signal
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

import bll_pyro as bll
from bll_pyro import metrics
from bll_pyro.features.store import Features
from bll_pyro.ranks import ALONE

N, FEW, D = 9000, 1200, 6  # beyond and below what is fitted by quasi-Newton steps on all rows; features
SHARES = {2: (0.3, 0.7), 3: (0.2, 0.5, 0.3), 4: (0.05, 0.5, 0.15, 0.3)}
CLASSES, WIDTH = 5000, 12  # of a layer whose outputs are shared


def own_rows(num_rows: int, rank: int, size: int) -> slice:
    """The rows of a rank: uneven parts, one after the other."""
    ends = [round(num_rows * sum(SHARES[size][:index])) for index in range(size + 1)]
    return slice(ends[rank], ends[rank + 1])


def features(num_rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Columns far from 0, one of which rests in most rows; the means of the ranks' rows differ."""
    random = torch.Generator().manual_seed(1)
    scale = torch.tensor([1.0, 3.0, 0.1, 1.0, 20.0, 1.0], dtype=torch.float64)
    x = torch.randn(num_rows, D, generator=random, dtype=torch.float64) * scale + 5 * scale
    x[:, 3] = (x[:, 3] > 6).double()
    return (x + torch.linspace(0, 1, num_rows, dtype=torch.float64)[:, None]).to(dtype)


def draws(num_rows: int) -> Tensor:
    return torch.randn(num_rows, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def values(num_rows: int) -> Tensor:
    x = features(num_rows)
    return x[:, 0] - 0.2 * x[:, 1] + 3 * x[:, 3] + 0.7 * draws(num_rows) + 100


def labels(num_rows: int) -> Tensor:
    """Three classes, of which the first rank of four has two."""
    x = features(num_rows)
    score = torch.stack([x[:, 0] + draws(num_rows), 0.4 * x[:, 1] - 1, 4 * x[:, 3] + 4.5], 1)
    found = score.argmax(1)
    found[: num_rows // 20][found[: num_rows // 20] == 1] = 0
    return found


def words(num_rows: int) -> list[str]:
    return [("ant", "bee", "cat")[number] for number in labels(num_rows).tolist()]


def classes(**options: Any) -> bll.LastLayer:
    return bll.LastLayer(bll.likelihoods.Categorical(), **options)


GAUSSIAN = bll.LastLayer(bll.likelihoods.Gaussian())
DOUBLE, SINGLE = torch.float64, torch.float32
# layer, inference, number of rows, targets of them, type of the features, whether rows have weights
Case = tuple[bll.LastLayer, Any, int, Callable[[int], Any], torch.dtype, bool]
CASES: dict[str, Case] = {
    "exact": (GAUSSIAN, bll.Exact(), N, values, DOUBLE, False),
    "exact with weights": (GAUSSIAN, bll.Exact(), N, values, DOUBLE, True),
    "kronecker": (classes(), bll.Laplace(), N, words, DOUBLE, False),
    "diagonal": (classes(), bll.Laplace(bll.curvatures.Diagonal()), FEW, labels, DOUBLE, True),
    "with noise": (
        bll.LastLayer(bll.likelihoods.StudentT(df=4.0)),
        bll.Laplace(bll.curvatures.Full()),
        FEW,
        values,
        DOUBLE,
        False,
    ),
    "svi": (classes(), bll.SVI(num_epochs=3), N, words, SINGLE, False),
    "svi of values": (GAUSSIAN, bll.SVI(num_epochs=3), N, values, DOUBLE, True),
    "low rank": (classes(), bll.SVI(bll.guides.LowRank(rank=2), num_epochs=2), N, labels, DOUBLE, False),
    "point": (classes(), bll.SVI(bll.guides.MAP(), num_epochs=2), N, labels, DOUBLE, False),
    "few rows": (classes(), bll.SVI(), FEW, labels, DOUBLE, False),
    "drawn weights": (classes(), bll.SVI(num_epochs=1, output_space=False), 200, labels, DOUBLE, False),
    "chains": (
        classes(prior=bll.priors.Normal(1.0)),
        bll.NUTS(num_warmup=4, num_samples=4, num_chains=3, max_tree_depth=3, num_processes=1),
        200,
        labels,
        DOUBLE,
        False,
    ),
}

FOUR = ("exact", "exact with weights", "kronecker", "svi", "svi of values")  # of these by 4 ranks too


def fitted(name: str, ranks: bll.distributed.Ranks | None = None) -> bll.Fit:
    """The fit of a case: of all rows by one process, or of the rows of this rank."""
    layer, inference, num_rows, targets, dtype, is_weighted = CASES[name]
    rows = slice(None) if ranks is None else own_rows(num_rows, ranks.rank, ranks.size)
    x, y = features(num_rows, dtype)[rows], targets(num_rows)[rows]
    weight = (draws(num_rows).abs() + 0.1)[rows] if is_weighted else None
    held_out = (features(200, dtype), targets(200)) if name == "low rank" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bll.FitWarning)  # few steps
        return bll.fit(
            layer,
            (x, y),
            None,
            inference,
            sample_weight=weight,
            validation_data=held_out,
            seed=3,
            ranks=ranks,
        )


def described(name: str, ranks: bll.distributed.Ranks | None = None) -> dict[str, Any]:
    """What a fit says, as plain tensors and numbers."""
    fit = fitted(name, ranks)
    predicted = fit.predict(features(100, CASES[name][4]))
    recalibration = fit.recalibration
    return {
        "num_rows": fit.num_rows,
        "mean": predicted.probs if fit.layer.likelihood.is_discrete else predicted.mean,
        "total": predicted.total,
        "elbo": fit.trace.elbo,
        "final": fit.trace.final_elbo,
        "log_evidence": fit.trace.log_evidence,
        "validation": fit.trace.validation,
        "temperature": None if recalibration is None else repr(recalibration),
        "classes": getattr(fit.layer.likelihood, "classes", None),
        "fingerprint": fit.fingerprint,
        "trace": fit.trace,
    }


def store() -> Features:
    """A store of seven uneven shards."""
    sizes = [100, 400, 50, 250, 100, 200, 100]
    return Features(list(zip(features(FEW).split(sizes), values(FEW).split(sizes))))


def of_store(ranks: bll.distributed.Ranks | None = None) -> dict[str, Any]:
    """An exact fit of the rows of a store."""
    data = store()
    if ranks is not None:
        rows = own_rows(FEW, ranks.rank, ranks.size)
        data = data.between(rows.start, rows.stop)
    fit = bll.fit(GAUSSIAN, data, None, bll.Exact(), ranks=ranks)
    return {
        "num_rows": fit.num_rows,
        "mean": fit.predict(features(50)).mean,
        "log_evidence": fit.trace.log_evidence,
    }


def scores(name: str, ranks: bll.distributed.Ranks | None = None) -> list[float]:
    """Metrics of the rows of all ranks."""
    fit, num_rows = fitted(name, ranks), 701
    rows = slice(None) if ranks is None else own_rows(num_rows, ranks.rank, ranks.size)
    dtype, targets = CASES[name][4], (labels if CASES[name][3] is words else values)(num_rows)[rows]
    prediction = fit.predict(features(num_rows, dtype)[rows])
    if ranks is not None:
        prediction, targets = bll.distributed.join_predictions(ranks, prediction), ranks.cat(targets)
    assert len(prediction) == len(targets) == num_rows
    nll = -float(prediction.log_prob(targets).mean())
    if isinstance(prediction, bll.prediction.ClassPrediction):
        return [nll, metrics.accuracy(prediction.probs, targets), metrics.ece(prediction.probs, targets)]
    return [nll, metrics.rmse(prediction.mean, targets)]


def many_classes(num_rows: int = 4000) -> tuple[Tensor, Tensor]:
    """Rows of 5,000 classes around centres of their own."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (num_rows,), generator=random)
    centres = 3 * torch.randn(CLASSES, WIDTH, generator=random)
    return centres[y] + torch.randn(num_rows, WIDTH, generator=random), y


def shared_outputs(kind: str, ranks: Any = ALONE, folder: str | None = None) -> dict[str, Any]:
    """A layer over many classes, and what it predicts, before and after it was saved."""
    options: dict[str, Any] = {"guide": bll.guides.MAP(), "prior_scale": 0.5} if kind == "point" else {}
    x, y = many_classes()
    layer = bll.distributed.fit_outputs((x, y), CLASSES, ranks, num_epochs=1, seed=5, **options)
    predicted = layer.predict(x[:40], y[:40])
    if folder is not None:
        layer.save(folder)
        again = bll.distributed.OutputShards.load(folder, ranks).predict(x[:40], y[:40])
        assert torch.equal(again.probs, predicted.probs)
    return {
        **vars(predicted),
        "elbo": layer.elbo,
        "prior_scale": layer.prior_scale,
        "num_own": len(layer.loc),
    }


WRONG: dict[str, Callable[[int], dict[str, Any]]] = {  # what rank 1 passes otherwise
    "layer": lambda rank: {"layer": bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Normal(1.0 + rank))},
    "inference": lambda rank: {"inference": [bll.Exact(), bll.SVI()][rank]},
    "seed": lambda rank: {"seed": rank},
    "inputs of data": lambda rank: {"data": (torch.randn(20, 3 + rank), torch.randn(20))},
    "float64": lambda rank: {"data": (torch.randn(20, 3, dtype=[DOUBLE, SINGLE][rank]), torch.randn(20))},
    "sample_weight of data": lambda rank: {"sample_weight": [torch.ones(20 + rank), None][rank]},
    "same on ranks 0 and 1": lambda rank: {"data": (torch.ones(20, 3), torch.arange(20.0))},
    "kind of targets": lambda rank: {
        "layer": classes(),
        "inference": bll.SVI(),
        "data": (torch.randn(20, 3), [["a", "b"] * 10, [0, 1] * 10][rank]),
    },
    "rank 1 failed: ValueError: inputs of data": lambda rank: {
        "data": (torch.full((20, 3), [0.5, torch.nan][rank]), torch.randn(20))
    },
}


def refused(name: str) -> tuple[str, str]:
    """Type and message of the error of a rank where rank 1 does something else, or wrong."""
    with bll.distributed.Ranks(timeout=20) as ranks:
        torch.manual_seed(ranks.rank)
        usual = {"layer": GAUSSIAN, "data": (torch.randn(20 + ranks.rank, 3), torch.randn(20 + ranks.rank))}
        try:
            bll.fit(**{**usual, "inference": bll.Exact(), **WRONG[name](min(ranks.rank, 1))}, ranks=ranks)  # type: ignore[arg-type]
        except Exception as error:
            return type(error).__name__, str(error)
    return "", ""


def report(rank: int, size: int, port: int, folder: str) -> dict[str, Any]:
    """All that a rank says: its fits, scores, layers over many classes, and what it refuses."""
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    try:
        with bll.distributed.Ranks(timeout=120) as ranks:
            found: dict[str, Any] = {name: described(name, ranks) for name in (CASES if size == 2 else FOUR)}
            found["store"] = of_store(ranks)
            found["scores"] = {name: scores(name, ranks) for name in ("svi", "svi of values")}
            found["outputs"] = {
                kind: shared_outputs(kind, ranks, str(Path(folder) / kind)) for kind in ("diagonal", "point")
            }
            found["parts"] = (ranks.total(rank), ranks.cat(torch.arange(rank)).tolist(), repr(ranks))
        found["refused"] = {name: refused(name) for name in WRONG} if size == 2 else {}
        return found
    finally:
        distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def lost(rank: int, size: int, port: int, how: str, answers: Any) -> None:
    """A fit in which rank 1 is killed, fails or hangs at a step; each other rank answers with its error and how long it took."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)

    def at_step(record: bll.Record) -> None:
        if rank == 1 and record.step == 5:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "failed":
                raise KeyError("a callback of the user's")
            time.sleep(60)

    ranks = bll.distributed.Ranks(timeout=3 if how == "hung" else 60)
    began = time.monotonic()
    rows = own_rows(N, rank, size)
    try:
        bll.fit(
            GAUSSIAN, (features(N)[rows], values(N)[rows]), None, bll.SVI(), callbacks=[at_step], ranks=ranks
        )
    except Exception as error:
        answers.put((rank, type(error).__name__, str(error), time.monotonic() - began))
