"""Advice on fitting a last layer, each line with a figure that says whether it holds, on data that scikit-learn ships.

``docs/practice.md`` shows these tables and pictures. A line of advice promises something; the promise is a target, set before
the measurement, and advice whose target is missed is named as wrong.
"""

import warnings
from collections.abc import Callable

from benchmarks.options import Options
from benchmarks.practice import points, prior_scale, rates, seen_rows, temperature, troubles
from benchmarks.practice.finding import Finding
from benchmarks.report import Report, Table

ADVICE: tuple[Callable[[Options], Finding], ...] = (
    prior_scale.standardise,
    prior_scale.learn_it,
    prior_scale.unit_scale,
    temperature.one_temperature,
    temperature.cold_posterior,
    points.enough_points,
    points.draws_in_training,
    rates.last_layer,
    rates.rate_of_a_network,
    rates.backbone,
    seen_rows.unseen_rows,
    seen_rows.few_are_enough,
    troubles.kl_per_row,
    troubles.kl_weight,
    troubles.calibrate,
    troubles.wider_prior,
    troubles.smaller_steps,
    troubles.clip_gradients,
    troubles.far_from_zero,
    troubles.smaller_guide,
)
SUMMARY = {
    "method": "advice",
    "topic": "topic",
    "what": "what it promises",
    "found": "found",
    "limit": "limit",
    "verdict": "",
}


def run(options: Options) -> Report:
    """Every line of advice with its table, its picture and its verdict."""
    report = Report("practice", "Practice: advice and what came of it")
    summary = Table("Advice", dict(SUMMARY))
    report.tables.append(summary)
    for measure in ADVICE:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fits that are made to go wrong
            found = measure(options)
        target = found.target
        limit = f"{target.sense} {target.limit:g}"
        row = {
            "method": found.advice,
            "topic": found.topic,
            "what": target.what,
            "found": target.found,
            "limit": limit,
        }
        summary.rows.append(row | {"verdict": "holds" if target.met else "wrong"})
        report.targets.append(target)
        if found.table is not None:
            report.tables.append(found.table)
        if found.draw is not None:
            name = f"practice_{found.picture}.png"
            options.results.mkdir(parents=True, exist_ok=True)
            found.draw(options.results / name)
            report.pictures.append(name)
    report.notes += [
        "Means over random splits of the rows, as many as the run has rounds (joint fits, guides and training draws: two); all "
        "methods get the same splits. NLL of classes is computed by benchmarks/scores.py.",
        "Targets are what the advice promises. A missed one says that the advice is wrong, not that the library fell short.",
    ]
    return report
