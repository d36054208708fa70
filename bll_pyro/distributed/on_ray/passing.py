"""The driver's side: a data set goes through actors, and what they wrote is checked in the end."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bll_pyro.distributed.on_ray.columns import RowColumns
from bll_pyro.distributed.on_ray.left_out import rows_left_out
from bll_pyro.distributed.on_ray.report import RowsReport
from bll_pyro.distributed.on_ray.work import Assignment, BlockWorker, Work
from bll_pyro.distributed.on_ray.workers import Workers
from bll_pyro.files import user_path
from bll_pyro.observation import stage
from bll_pyro.shards.commit import refuse_doubles
from bll_pyro.shards.parts import WrittenPart, remove_part, written_parts
from bll_pyro.shards.place import Place

OPTIONS = {"enable_progress_bars": False, "print_on_execution_start": False}  # there is a bar of our own


def pass_rows(data: Any, rows: Any, columns: RowColumns, work: Work, workers: Workers) -> RowsReport:
    """Do a work for all rows that it is not done for yet; ``data`` is the module ``ray.data``.

    Raises
    ------
    ValueError
        If the folder has parts of another key, rows lack a column or have no result, or an id occurs twice. Parts that are
        finished stay.
    """
    dataset = dataset_of(data, rows, columns)
    before = parts_of_key(work.place, work.key)
    left_out = rows_left_out(work.place, workers.retries)
    given = Assignment(work, columns, workers, tuple(before.values()), tuple(left_out))
    num_rows, reported = 0, set(before)
    passed = through_actors(dataset, BlockWorker, given, workers)
    with stage("rows", rows_per_step=1) as done, passed as outcomes:
        for row in outcomes:
            if row["error"]:
                raise pickle.loads(row["error"])
            num_rows += row["num_rows"]
            reported.add(row["part"])
            done.advance(row["num_rows"])
    parts = written_parts(work.place)
    for part in (
        parts.keys() - reported
    ):  # of a worker that died, whose rows came to another one in other blocks
        remove_part(work.place, part, parts[part].file)
    left_out = rows_left_out(work.place, workers.retries)
    records = [record for part, record in parts.items() if part in reported]
    _check(work, records, num_rows, len(left_out))
    kept = sum(record.num_rows for record in before.values())
    total = sum(record.num_rows for record in records)
    return RowsReport(str(work.place), total, total - kept, kept, tuple(left_out))


def dataset_of(data: Any, rows: Any, columns: RowColumns) -> Any:
    """A data set with the columns that are needed, from a data set of Ray or from paths of Parquet files."""
    if isinstance(rows, (str, Path)):
        dataset = data.read_parquet(full_path(rows))
    elif isinstance(rows, Sequence):
        dataset = data.read_parquet([full_path(path) for path in rows])
    elif isinstance(rows, data.Dataset):
        dataset = rows
    else:
        raise TypeError(
            f"rows: expected a ray.data.Dataset, or paths of Parquet files, got {type(rows).__name__}; see ray.data.from_arrow "
            "and others for what is in memory"
        )
    schema = dataset.schema(fetch_if_missing=False)
    if schema is None:  # found by running a part of it; the workers look at it instead
        return dataset
    columns.check(schema.names)
    return dataset.select_columns(columns.names)


def full_path(path: str | Path) -> str:
    """A path as other processes need it, which are in other folders; URLs stay."""
    return str(path) if "://" in str(path) else str(user_path(path))


@contextmanager
def through_actors(
    dataset: Any, actor: type, given: Any, workers: Workers
) -> Iterator[Iterator[dict[str, Any]]]:
    """Give the rows that actors make of the blocks of a data set, as they come; ``given`` goes to each of them once.

    Blocks are of ``rows_per_part`` rows, and the same ones in each call with the same data: they are bundled in their order.
    """
    import ray

    reference = ray.put(given)
    number = workers.num_actors or max(int(ray.cluster_resources().get("CPU", 1)), 1)
    # otherwise many rows, up to 128 MiB, go to one actor, and the others wait
    blocks = dataset.repartition(target_num_rows_per_block=workers.rows_per_part, strict=True)
    made = blocks.map_batches(
        actor,
        fn_constructor_args=([reference],),
        batch_size=workers.rows_per_part,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=number),
        num_cpus=workers.num_cpus,
        num_gpus=workers.num_gpus,
    )
    with _options(made.context), closing(_each(made)) as outcomes:
        yield outcomes


def _each(dataset: Any) -> Generator[dict[str, Any], None, None]:
    """Rows as Ray gives them; closing it ends the pass."""
    yield from dataset.iter_rows()


@contextmanager
def _options(context: Any) -> Iterator[None]:
    """Run the block with our options of Ray Data; the context is that of the caller's data set."""
    before = {name: getattr(context, name) for name in OPTIONS}
    order = context.execution_options.preserve_order
    try:
        for name, value in OPTIONS.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = True
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = order


def parts_of_key(place: Place, key: str) -> dict[str, WrittenPart]:
    """The parts that are in a folder, by name; ValueError if one is of another key. Of parts that were cut the records go."""
    found = written_parts(place)
    other = next((record for record in found.values() if record.key != key), None)
    if other is not None:
        raise ValueError(
            f"{place}: expected parts of the key {key[:12]}..., got {str(other.key)[:12]}... in {other.file}: they are of another "
            "model, other columns or another type; go on with the same call, or choose another folder"
        )
    for part, record in list(found.items()):
        if place.size(record.file) != record.num_bytes:
            remove_part(place, part, record.file)
            del found[part]
    return found


def _check(work: Work, records: list[WrittenPart], num_rows: int, num_left_out: int) -> None:
    """Raise unless there is one result for each row."""
    place = work.place
    records = sorted(records, key=lambda record: (record.first_id, record.file))
    refuse_doubles(place, records, work.read_ids)
    total = sum(record.num_rows for record in records) + num_left_out
    if total != num_rows:
        remedy = (
            "the folder has rows of other data: choose another one"
            if total > num_rows
            else "an id occurs in several rows: give each row its own"
        )
        raise ValueError(
            f"{place}: expected a result for each of {num_rows} rows, got {total} of different ids; {remedy}"
        )
