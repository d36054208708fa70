"""One reader for every form of data: the same rows, in the same order, whatever they come in."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from bll_pyro.features.data import Data, read
from bll_pyro.features.sources import with_last_joined
from bll_pyro.features.store import Features
from bll_pyro.scope import isolated

# torch starts workers by fork; Python warns because torch's idle threads exist by then. They hold no lock that a
# worker needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

N = 23
X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
Y = np.arange(N)


class Items(Dataset):
    """A dataset that torch cannot slice: items one by one, counted."""

    def __init__(self, inputs=X, targets=Y):
        self.inputs, self.targets = torch.from_numpy(inputs), targets
        self.num_reads = 0

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        self.num_reads += 1
        return (self.inputs[i], self.targets[i]) if self.targets is not None else self.inputs[i]


class Noisy(Items):
    """A dataset that draws from every global generator, as augmentation does."""

    def __getitem__(self, i):
        noise = torch.rand(()) + np.random.random() + random.random()
        return self.inputs[i] + noise, self.targets[i]


class Stream(IterableDataset):
    def __init__(self, length=N, shards=True):
        self.length, self.shards = length, shards

    def __len__(self):
        return self.length

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        step = worker.num_workers if worker and self.shards else 1
        start = worker.id if worker and self.shards else 0
        return ((X[i], Y[i]) for i in range(start, N, step))


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(3), 0


def rows(source, batch_size=5, generator=None):
    batches = list(source.batches(batch_size, generator=generator))
    inputs = torch.cat([x for x, _ in batches])
    targets = None if batches[0][1] is None else torch.cat([y for _, y in batches])
    return inputs, targets


FORMS = {
    "arrays": lambda: (X, Y),
    "tensors": lambda: (torch.from_numpy(X), torch.from_numpy(Y)),
    "lists": lambda: ([torch.from_numpy(x) for x in X], Y.tolist()),
    "frames": lambda: (pd.DataFrame(X), pd.Series(Y)),
    "tensor dataset": lambda: TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    "dataset": lambda: Items(),
    "subset": lambda: Subset(Items(), range(N)),
    "iterable": lambda: Stream(),
    "loader": lambda: DataLoader(Items(), batch_size=7),
    "iterable loader": lambda: DataLoader(Stream(), batch_size=7),
    "features": lambda: Features.from_tensors(torch.from_numpy(X), torch.from_numpy(Y)),
    "features and targets": lambda: (Features.from_tensors(torch.from_numpy(X)), Y),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form):
    source = read(FORMS[form](), need_targets=True, min_rows=2)
    inputs, targets = rows(source)
    assert source.num_rows == N
    assert source.has_targets
    assert not source.shuffled
    assert torch.equal(inputs, torch.from_numpy(X))
    assert torch.equal(targets, torch.from_numpy(Y))
    x, y = source.example()
    assert torch.equal(x, torch.from_numpy(X)[: len(x)])
    assert y[0] == 0


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_fingerprint(form):
    expected = read((X, Y), need_targets=True).scan()[0]
    assert read(FORMS[form](), need_targets=True).scan()[0] == expected


@pytest.mark.parametrize("form", ["arrays", "tensor dataset", "features"])
def test_data_in_memory_is_handed_out_whole(form):
    x, y = read(FORMS[form](), need_targets=True).tensors()
    assert torch.equal(x, torch.from_numpy(X))
    assert torch.equal(y, torch.from_numpy(Y))
    assert read(Items(), need_targets=True).tensors() is None


@pytest.mark.parametrize("form", ["arrays", "dataset", "subset", "features"])
def test_a_generator_gives_one_permutation_for_every_form(form):
    source = read(FORMS[form](), need_targets=True)
    first = rows(source, generator=torch.Generator().manual_seed(3))
    again = rows(source, generator=torch.Generator().manual_seed(3))
    other = rows(source, generator=torch.Generator().manual_seed(4))
    reference = rows(read((X, Y), need_targets=True), generator=torch.Generator().manual_seed(3))
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[1], reference[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(first[0], torch.from_numpy(X)[first[1]])
    assert sorted(first[1].tolist()) == Y.tolist()


def test_tensors_are_sliced_and_not_copied():
    x = torch.from_numpy(X)
    batches = [batch for batch, _ in read(x, need_targets=False).batches(10)]
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert all(batch.data_ptr() == x[10 * i :].data_ptr() for i, batch in enumerate(batches))


def test_values_and_dtypes_stay():
    assert read(X.astype(np.float64), need_targets=False).tensors()[0].dtype == torch.float64
    images = np.full((3, 2, 2), 255, np.uint8)
    assert read(images, need_targets=False).tensors()[0].dtype == torch.uint8


@pytest.mark.parametrize("data", [X, torch.from_numpy(X), (X, None), Items(targets=None)])
def test_inputs_alone(data):
    source = read(data, need_targets=False)
    assert not source.has_targets
    assert rows(source)[1] is None
    with pytest.raises(ValueError, match=r"training data: expected inputs and targets.*\(inputs, targets\)"):
        read(data, need_targets=True, what="training data")


def test_loaders_of_inputs_alone():
    for dataset in (Items(targets=None), TensorDataset(torch.from_numpy(X))):
        source = read(DataLoader(dataset, batch_size=4), need_targets=False)
        assert not source.has_targets
        assert torch.equal(rows(source)[0], torch.from_numpy(X))


def test_inputs_may_be_dictionaries():
    items = [({"a": torch.tensor([i]), "b": torch.tensor(2.0 * i)}, i) for i in range(6)]

    class Dictionaries(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return items[i]

    source = read(Dictionaries(), need_targets=True)
    batches = list(source.batches(4))
    assert [len(y) for _, y in batches] == [4, 2]
    assert batches[1][0]["b"].tolist() == [8.0, 10.0]
    assert source.scan()[0] == read(DataLoader(Dictionaries(), batch_size=5), need_targets=True).scan()[0]


def test_features_of_several_shards_are_not_put_together(tmp_path):
    from bll_pyro.features.writer import ShardWriter

    with ShardWriter(tmp_path / "f", N, shard_bytes=24 * 9) as writer:
        writer.append(torch.from_numpy(X), torch.from_numpy(Y))
        features = writer.close()
    source = read(features, need_targets=True)
    assert features.num_shards == 3
    assert source.tensors() is None
    inputs, targets = rows(source, generator=torch.Generator().manual_seed(1))
    assert torch.equal(inputs, torch.from_numpy(X)[targets])
    assert source.scan()[0] == read((X, Y), need_targets=True).scan()[0]


# ---- loaders


def order_of(loader, seed, num_passes=2, draws=0):
    """The rows of some passes, and what the caller draws between batches, under one seed."""
    source = read(loader, need_targets=True)
    order, drawn = [], []
    with isolated(seed):
        for _ in range(num_passes):
            for inputs, targets in source.batches(1):
                order.append((inputs.clone(), targets))
                drawn.append(torch.rand(draws))
    return torch.cat([y for _, y in order]), torch.cat([x for x, _ in order]), torch.cat(drawn)


@pytest.mark.parametrize("dataset", [Items(), Noisy()], ids=["plain", "augmented"])
def test_rows_and_order_do_not_depend_on_the_number_of_workers(dataset):
    def result(num_workers, seed):
        return order_of(
            DataLoader(dataset, batch_size=4, shuffle=True, num_workers=num_workers), seed, draws=2
        )

    y0, x0, drawn0 = result(0, seed=5)
    for num_workers in (1, 2):
        y, x, drawn = result(num_workers, seed=5)
        assert torch.equal(y, y0)
        assert torch.equal(drawn, drawn0)
        if not isinstance(dataset, Noisy):
            assert torch.equal(x, x0)
    assert not torch.equal(y0[:N], y0[N:])  # each pass has an order of its own
    assert not torch.equal(result(0, seed=6)[0], y0)


def test_a_weighted_sampler_does_not_depend_on_the_number_of_workers():
    def order(num_workers):
        sampler = WeightedRandomSampler(torch.rand(N, generator=torch.Generator().manual_seed(0)), 30)
        return order_of(DataLoader(Items(), batch_size=4, sampler=sampler, num_workers=num_workers), 1)[0]

    assert len(order(0)) == 60
    assert torch.equal(order(0), order(2))


def test_augmentation_differs_from_batch_to_batch():
    _, x, _ = order_of(DataLoader(Noisy(), batch_size=1), seed=2, num_passes=2)
    noise = (x - torch.from_numpy(X).repeat(2, 1))[:, 0]
    assert len(noise.unique()) == 2 * N


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_with_workers_is_in_order_and_draws_nothing_from_the_caller(num_workers):
    source = read(Noisy(), need_targets=False, num_workers=num_workers)
    states = torch.get_rng_state(), random.getstate()
    _, y = rows(source)
    rows(source, generator=torch.Generator().manual_seed(0))
    assert torch.equal(y, torch.from_numpy(Y))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_looking_at_an_example_leaves_the_random_state():
    state = torch.get_rng_state()
    source = read(DataLoader(Noisy(), batch_size=2, shuffle=True), need_targets=True)
    assert source.example()[0].shape == (1, 4)
    assert torch.equal(state, torch.get_rng_state())


def test_a_loader_keeps_its_batches_and_says_that_it_shuffles():
    assert not read(DataLoader(Items(), batch_size=6), need_targets=True).shuffled
    source = read(DataLoader(Items(), batch_size=6, shuffle=True), need_targets=True)
    assert source.shuffled
    assert [len(y) for _, y in source.batches(100)] == [6, 6, 6, 5]


def test_the_fingerprint_of_a_shuffling_loader_is_that_of_its_rows():
    def fingerprint(inputs):
        return read(DataLoader(Items(inputs), batch_size=4, shuffle=True), need_targets=True).scan()[0]

    changed = X.copy()
    changed[4, 1] += 1
    assert fingerprint(X) == fingerprint(X)
    assert fingerprint(X) != fingerprint(changed)
    swapped = X.copy()
    swapped[[0, 1]] = swapped[[1, 0]]  # the same inputs with other targets
    assert fingerprint(X) != fingerprint(swapped)


def test_the_number_of_rows_of_a_subset_sampler_is_that_of_the_subset():
    loader = DataLoader(Items(), batch_size=4, sampler=SubsetRandomSampler(range(10)))
    assert read(loader, need_targets=True).num_rows == 10


def test_the_number_of_rows_is_that_of_the_data_when_a_sampler_repeats_rows():
    loader = DataLoader(Items(), batch_size=4, sampler=WeightedRandomSampler([1.0] * N, 100))
    source = read(loader, need_targets=True)
    assert source.num_rows == N
    assert sum(len(y) for _, y in source.batches(1)) == 100


# ---- bad input


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4, "drop_last": True},
        {"batch_size": 24, "drop_last": True, "shuffle": True},
        {"batch_sampler": BatchSampler(SequentialSampler(X), 4, drop_last=True)},
    ],
)
def test_a_loader_that_loses_rows_is_refused(options):
    with pytest.raises(ValueError, match=r"drop_last=True, which loses (3|23) of 23 rows.*drop_last=False"):
        read(DataLoader(Items(), **options), need_targets=True)


@pytest.mark.parametrize("own_batches", [False, True])
def test_a_loader_that_shuffles_may_drop_rows_of_a_pass_of_training(own_batches):
    """Other rows in each pass; every other pass, such as extraction, gets all of them."""
    data = TensorDataset(torch.arange(23.0)[:, None], torch.arange(23))
    if own_batches:
        loader = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, drop_last=True))
    else:
        loader = DataLoader(data, batch_size=4, drop_last=True, shuffle=True)
    source = read(loader, need_targets=True)
    assert (source.num_rows, source.own_batches) == (23, 5)
    random = torch.Generator().manual_seed(0)
    passes = [torch.cat([y for _, y in source.batches(9, generator=random)]) for _ in range(20)]
    assert {len(rows.unique()) for rows in passes} == {20}
    assert len(torch.cat(passes).unique()) == 23
    assert torch.equal(torch.cat([y for _, y in source.batches(9)]).sort().values, torch.arange(23))


@pytest.mark.parametrize("inputs", ["tensor", "dictionary", "tuple", "texts", "images"])
def test_a_last_batch_of_one_row_joins_the_one_before(inputs):
    """For every form of batches; where all are of one row they stay."""

    def batch(rows):
        x = torch.tensor(rows)[:, None].float()
        texts = [str(row) for row in rows]
        forms = {"tensor": x, "dictionary": {"x": x, "text": texts}, "tuple": (x, [x, texts]), "texts": texts}
        forms["images"] = [torch.ones(2 + row, 3) for row in rows]
        return forms[inputs], torch.tensor(rows)

    def joined(*batches):
        return list(with_last_joined(batch(rows) for rows in batches))

    for found, rows in (
        (joined([0, 1, 2], [3, 4, 5], [6]), [[0, 1, 2], [3, 4, 5, 6]]),
        (joined([0, 1, 2], [3]), [[0, 1, 2, 3]]),
        (joined([0, 1, 2], [3, 4]), [[0, 1, 2], [3, 4]]),
        (joined([0], [1], [2]), [[0], [1], [2]]),
        (joined([0]), [[0]]),
        (joined(), []),
    ):
        assert repr(found) == repr([batch(part) for part in rows])


def test_weights_stay_with_their_rows_where_batches_are_joined():
    rows = torch.arange(21.0)
    for data in (TensorDataset(rows[:, None], rows), Items(rows[:, None].numpy(), rows)):
        source = read(Data(data, sample_weight=rows), need_targets=True)
        passed = list(source.batches_with_columns(4, generator=torch.Generator().manual_seed(0)))
        assert [len(y) for _, y, _ in passed] == [4, 4, 4, 4, 5]
        for inputs, targets, columns in passed:
            assert torch.equal(inputs[:, 0], targets) and torch.equal(columns.weight.flatten(), targets)


def test_what_cannot_be_joined_stays_apart():
    wide = torch.zeros(2, 3), torch.zeros(2)
    for other in (torch.zeros(1, 4), object()):
        batches = [
            (wide[0] if isinstance(other, torch.Tensor) else object(), wide[1]),
            (other, torch.zeros(1)),
        ]
        assert len(list(with_last_joined(iter(batches)))) == 2


def test_drop_last_that_loses_nothing_is_fine():
    data = Items(X[:20], Y[:20])
    assert read(DataLoader(data, batch_size=4, drop_last=True), need_targets=True).num_rows == 20


def test_data_without_a_length_is_refused():
    for data in (Endless(), DataLoader(Endless(), batch_size=2)):
        with pytest.raises(ValueError, match=r"dataset with a length, got Endless.*__len__"):
            read(data, need_targets=True)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")  # torch says it too, but goes on
@pytest.mark.parametrize(("length", "shards", "workers"), [(N + 1, True, 0), (N - 1, True, 0), (N, False, 2)])
def test_a_stream_of_another_length_than_it_says_is_an_error(length, shards, workers):
    loader = DataLoader(Stream(length, shards), batch_size=4, num_workers=workers)
    for data in (Stream(length, shards), loader):
        source = read(data, need_targets=True, num_workers=workers)
        with pytest.raises(ValueError, match=rf"expected {length} rows in a pass"):
            rows(source)


def test_a_stream_cannot_be_permuted():
    source = read(Stream(), need_targets=True)
    with pytest.raises(TypeError, match="reached by index"):
        source.batches(4, generator=torch.Generator())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X, Y[:-1]), ValueError, "23 inputs and 22 targets"),
        ((X, Y, Y), ValueError, "tuple of 3"),
        ((X, 3), ValueError, "targets of data.*got a single number"),
        (np.float64(3), ValueError, "single number"),
        ("data.csv", TypeError, "got str"),
        ([X, Y], ValueError, "as a tuple"),
        ((Features.from_tensors(torch.zeros(3, 2)), Y), ValueError, "3 inputs and 23 targets"),
    ],
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        read(data, need_targets=False)


@pytest.mark.parametrize("data", [(X[:1], Y[:1]), Items(X[:1], Y[:1]), DataLoader(Items(X[:1], Y[:1]))])
def test_too_few_rows(data):
    with pytest.raises(ValueError, match="expected at least 2 rows, got 1"):
        read(data, need_targets=True, min_rows=2)


def test_empty_data():
    for data in (X[:0], Items(X[:0], Y[:0])):
        with pytest.raises(ValueError, match="expected at least 1 row, got 0"):
            read(data, need_targets=True)


def test_items_of_three_parts_and_items_that_are_no_arrays():
    class Triples(Items):
        def __getitem__(self, i):
            return 1, 2, 3

    class Pictures(Items):
        def __getitem__(self, i):
            from PIL import Image

            return Image.new("RGB", (4, 4)), 1

    with pytest.raises(ValueError, match="got 3 parts"):
        read(Triples(), need_targets=True)
    with pytest.raises(TypeError, match=r"got \(Image, int\).*transform=backbone.transform"):
        read(Pictures(), need_targets=True)
