"""Single rows to look at: the most uncertain ones, and those where the fit was sure and wrong."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bll_pyro.prediction import ClassPrediction, LabelPrediction, ValuePrediction
from bll_pyro.reporting.blocks import Cell, Section, SortableTable, Text, aligned, number, short_name, whole
from bll_pyro.reporting.items import Items
from bll_pyro.reporting.material import Material

NUM_ROWS = 8  # in each table
MOST_NAMES = 4  # labels or targets of one row that are named


def single_rows_section(material: Material) -> Section:
    """Tables of rows, each with what it is, what was said of it, and its uncertainties."""
    section = Section(
        "Rows to look at",
        "rows",
        "Looking at single rows tells more than any score: wrong labels, broken inputs, and kinds that the data hardly have. Row "
        "numbers start at 0, in the order of the data.",
    )
    items = Items(material)
    total = torch.from_numpy(material.by_row("total"))
    _add(section, material, items, "most_uncertain", "Most uncertain, by total uncertainty", total)
    epistemic = torch.from_numpy(material.by_row("epistemic"))
    if bool((epistemic > 0).any()):
        _add(section, material, items, "least_known", "Least known, by epistemic uncertainty", epistemic)
    if material.rows is not None:
        caption, score = _wrong(material)
        if bool(torch.isfinite(score).any()):
            _add(section, material, items, "confidently_wrong", caption, score)
        else:
            section.blocks.append(Text("No row was decided wrongly."))
    return section


def _add(section: Section, material: Material, items: Items, key: str, caption: str, score: Tensor) -> None:
    """A table of the rows with the largest score."""
    order = torch.argsort(score, descending=True, stable=True)[:NUM_ROWS]
    rows = [row for row in order.tolist() if torch.isfinite(score[row])]
    said = _said(material, rows)
    called = [row if material.row_names is None else material.row_names[row] for row in rows]
    told = [column for column in ("target", "prediction") if column in said]
    words = [
        f"row {short_name(called[i])}: " + ", ".join(f"{column} {said[column][i].text}" for column in told)
        for i in range(len(rows))
    ]
    shown, table = items.cells(rows, words), []
    for i, one in enumerate(called):
        cells = [column[i] for column in said.values()]
        name = whole(int(one)) if isinstance(one, int | np.integer) else Cell(short_name(one))
        table.append([name, *(shown[i] + cells if items.come_first else cells + shown[i])])
    names = [*items.columns, *said] if items.come_first else [*said, *items.columns]
    section.blocks.append(SortableTable(caption, dict.fromkeys(["row", *names], ""), table, items.note))
    section.details[key] = [int(one) if isinstance(one, int | np.integer) else str(one) for one in called]


def _wrong(material: Material) -> tuple[str, Tensor]:
    """How confidently each row was wrong ``[N]``; minus infinity for rows that were right."""
    prediction, targets = material.prediction, material.targets
    if isinstance(prediction, ClassPrediction):
        score = prediction.confidence.double()
        return "Most confidently wrong", score.masked_fill(material.decided == targets, -torch.inf).cpu()
    if isinstance(prediction, LabelPrediction):
        wrong = material.decided != targets.view_as(prediction.probs)
        score = prediction.confidence.double().masked_fill(~wrong, -torch.inf)
        return "Most confidently wrong", score.reshape(len(score), -1).amax(1).cpu()
    assert isinstance(prediction, ValuePrediction)
    distance = (
        targets.to(prediction.mean).view_as(prediction.mean) - prediction.mean
    ).abs() / prediction.scale
    return "Furthest from the prediction, in predictive standard deviations", distance.double().reshape(
        len(distance), -1
    ).amax(1).cpu()


def _said(material: Material, rows: list[int]) -> dict[str, list[Cell]]:
    """Columns of what was said of some rows."""
    prediction, names = material.prediction, material.classes
    index = torch.tensor(rows, dtype=torch.long)
    targets = None if material.rows is None else material.targets.cpu()[index]
    columns: dict[str, list[Cell]] = {}
    if isinstance(prediction, ClassPrediction):
        label, confidence = material.decided.cpu()[index], prediction.confidence.cpu()[index]
        if targets is not None:
            columns["target"] = [Cell(short_name(names[k])) for k in targets.long().tolist()]
        columns["prediction"] = [Cell(short_name(names[k])) for k in label.tolist()]
        columns["confidence"] = [number(value) for value in confidence.tolist()]
    elif isinstance(prediction, LabelPrediction):
        probs = prediction.probs.cpu()[index]
        named = None if material.fit.classes is None else [str(label) for label in material.fit.classes]
        if targets is not None:
            columns["target"] = [Cell(_labels(one, names, named)) for one in targets]
        columns["prediction"] = [Cell(_labels(one > 0.5, names, named)) for one in probs]
        columns["largest probability"] = [number(float(one.max())) for one in probs]
    elif isinstance(prediction, ValuePrediction):
        if targets is not None:
            columns["target"] = _numbers(targets)
        columns["prediction"] = _numbers(prediction.mean.cpu()[index])
        columns["standard deviation"] = _numbers(prediction.scale.cpu()[index])
    unit = "nats" if material.has_entropies else "variance"
    for name in ("total", "epistemic"):
        columns[f"{name}, {unit}"] = aligned(material.by_row(name)[rows])
    return columns


def _labels(given: Tensor, names: list[str], named: list[str] | None) -> str:
    """Names of the labels that are 1; of a single label which of its two values it is."""
    flat = given.reshape(-1)
    if len(flat) == 1:
        return str(int(flat[0])) if named is None else short_name(named[int(flat[0])])
    on = [short_name(names[t], 20) for t in flat.nonzero().flatten().tolist()]
    more = f" and {len(on) - MOST_NAMES} more" if len(on) > MOST_NAMES else ""
    return (", ".join(on[:MOST_NAMES]) + more) or "none"


def _numbers(values: Tensor) -> list[Cell]:
    """One number a row, or several in one cell."""
    flat = values.double().reshape(len(values), -1)
    if flat.shape[1] == 1:
        return aligned(flat[:, 0].tolist())
    more = ", …" if flat.shape[1] > MOST_NAMES else ""
    return [Cell(", ".join(f"{v:.3g}" for v in line[:MOST_NAMES].tolist()) + more) for line in flat]
