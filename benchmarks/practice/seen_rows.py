"""Advice on rows that the backbone was trained on."""

import torch

import bll_pyro as bll
from benchmarks import scores
from benchmarks.options import Options
from benchmarks.practice.finding import Finding
from benchmarks.practice.splits import Split, loss, mean, overconfidence, seeds, split_of, trained
from benchmarks.report import Table, Target

TOPIC = "Rows that the backbone has seen"
NUM_SEEN, NUM_NEW = 500, 250
FEW = (25, 50, 100, 250)


def unseen_rows(options: Options) -> Finding:
    """A last layer on rows that the network was trained on, on new rows, and on seen rows with a temperature from new ones."""
    columns = {"method": "last layer", "nll": "test NLL", "sure": "confidence less accuracy"}
    table = Table(f"A network trained on {NUM_SEEN} digits with noise, and {NUM_NEW} others", columns)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds(options):
        split, seen, new, head = seen_and_new(seed)
        logits = head(split.test[0]).detach()
        probs = logits.softmax(-1)
        confidence = float(probs.max(-1).values.double().mean()) - scores.accuracy(probs, split.test[1])
        found.setdefault("the network's own softmax head", []).append(
            (scores.nll(probs, split.test[1]), confidence)
        )
        both = tuple(torch.cat(parts) for parts in zip(seen, new, strict=True))
        fits = {
            "bll_pyro, on the seen rows": bll.fit(split.layer(), seen, seed=seed),
            "bll_pyro, on seen and new rows together": bll.fit(split.layer(), both, seed=seed),
            "bll_pyro, on the seen rows, temperature from the new ones": bll.fit(
                split.layer(), seen, calibration=new, seed=seed
            ),
            "bll_pyro, on the new rows": bll.fit(split.layer(), new, seed=seed),
        }
        for name, fit in fits.items():
            found.setdefault(name, []).append((loss(fit, split), overconfidence(fit, split)))
    for name, values in found.items():
        table.rows.append(
            {"method": name, "nll": mean([v for v, _ in values]), "sure": mean([v for _, v in values])}
        )
    nll = {row["method"]: float(row["nll"]) for row in table.rows}
    ratio = nll["bll_pyro, on the new rows"] / nll["bll_pyro, on the seen rows"]
    target = Target("test NLL on new rows over that on seen rows, which are twice as many", ratio, 1.0)
    return Finding(
        TOPIC,
        "Fit the last layer on rows that the backbone has not seen, even if they are fewer",
        target,
        table,
    )


def few_are_enough(options: Options) -> Finding:
    """The temperature of a layer on seen rows, from few or many new rows."""
    columns = {"rows": "new rows for the temperature", "nll": "test NLL", "sure": "confidence less accuracy"}
    table = Table("A layer on seen rows, its temperature from new ones", columns)
    found: dict[int, list[tuple[float, float]]] = {}
    for seed in seeds(options):
        split, seen, new, _ = seen_and_new(seed)
        fit = bll.fit(split.layer(), seen, seed=seed)
        for number in (0, *FEW):
            one = bll.calibrate(fit, new[0][:number], new[1][:number]) if number else fit
            found.setdefault(number, []).append((loss(one, split), overconfidence(one, split)))
    for number, values in found.items():
        label = number or "none (left-out seen rows)"
        table.rows.append(
            {"rows": label, "nll": mean([v for v, _ in values]), "sure": mean([v for _, v in values])}
        )
    nll = {row["rows"]: float(row["nll"]) for row in table.rows}
    target = Target("test NLL with 50 rows over that with 250", nll[50] / nll[FEW[-1]], 1.05)
    return Finding(TOPIC, "50 new rows are enough for the temperature", target, table)


def seen_and_new(seed: int) -> tuple[Split, tuple, tuple, object]:
    """Features of all rows, those of the seen and the new training rows, and the network's head."""
    split = split_of("digits", NUM_SEEN + NUM_NEW, seed, noise=4.0)
    backbone, head = trained(tuple(part[:NUM_SEEN] for part in split.train), seed)
    split = split.through(backbone)
    seen, new = (
        tuple(part[rows] for part in split.train) for rows in (slice(NUM_SEEN), slice(NUM_SEEN, None))
    )
    return split, seen, new, head
