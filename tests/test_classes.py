"""Labels of any type as they come in: what classes are found, which numbers stand for them, and what is refused."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bll_pyro as bll
from bll_pyro import likelihoods as lk
from bll_pyro.classes import Classes
from bll_pyro.inference.training_data import TrainingData

NUMBERS = np.array([2, 2, 0, 1, 0, 2, 1, 0, 0, 1])
X = np.random.default_rng(0).normal(size=(len(NUMBERS), 2))
TEXT = np.array(["bird", "cat", "dog"])[NUMBERS]
ODD = np.array([3, 7, 9])[NUMBERS]
ORDER = ["dog", "bird", "cat", "emu"]  # of which the last has no row

FORMS = {
    "list": TEXT.tolist(),
    "array of text": TEXT,
    "array of objects": TEXT.astype(object),
    "NumPy's strings": TEXT.astype(np.dtypes.StringDType()),
    "Series": pd.Series(TEXT),
    "Series of objects": pd.Series(TEXT, dtype=object),
    "categorical": pd.Series(TEXT, dtype="category"),
    "Index": pd.Index(TEXT),
    "polars": pl.Series(TEXT),
    "polars categorical": pl.Series(TEXT, dtype=pl.Categorical),
    "Arrow": pa.array(TEXT),
    "Arrow in chunks": pa.chunked_array([TEXT]),
    "Arrow dictionary": pa.array(TEXT).dictionary_encode(),
    "column of a frame": "kind",
}
NUMERIC = {
    "array": ODD,
    "unsigned": ODD.astype(np.uint8),
    "whole floats": ODD.astype(float),
    "tensor": torch.from_numpy(ODD),
    "objects": ODD.astype(object),
    "categories": pd.Series(ODD, dtype="category"),
    "nullable": pd.Series(ODD, dtype="Int64"),
}


def found(targets, likelihood, inputs=X):
    rows = TrainingData.of(bll.LastLayer(likelihood), (inputs, targets))
    return rows.layer.likelihood, rows.whole[1].flatten().tolist()


@pytest.mark.parametrize("form", FORMS)
def test_text_in_every_form(form):
    given = FORMS[form]
    inputs = X if not isinstance(given, str) else pd.DataFrame(X, columns=["a", "b"]).assign(kind=TEXT)
    for likelihood in (lk.Categorical(), lk.Categorical(3)):
        made, numbers = found(given, likelihood, inputs)
        assert made == lk.Categorical(classes=["bird", "cat", "dog"]) and numbers == NUMBERS.tolist()
        assert all(type(label) is str for label in made.classes)


@pytest.mark.parametrize("form", NUMERIC)
def test_whole_numbers_in_every_form(form):
    made, numbers = found(NUMERIC[form], lk.Categorical(3))
    assert made.classes == (3, 7, 9) and numbers == NUMBERS.tolist()
    assert type(made.classes[0]) is (float if form == "whole floats" else int)


@pytest.mark.parametrize(
    "given",
    [NUMBERS > 0, (NUMBERS > 0).tolist(), pd.Series(NUMBERS > 0, dtype="boolean"), pl.Series(NUMBERS > 0)],
)
def test_booleans(given):
    for likelihood in (lk.Categorical(), lk.Categorical(2), lk.Bernoulli()):
        made, numbers = found(given, likelihood)
        assert made.classes == (False, True) and numbers == (NUMBERS > 0).astype(int).tolist()


def test_numbers_of_classes_stay_what_they_are():
    for given in (
        NUMBERS,
        NUMBERS.astype(float),
        NUMBERS.astype(np.uint8),
        pd.Series(NUMBERS, dtype="category"),
    ):
        made, numbers = found(given, lk.Categorical())
        assert made == lk.Categorical(3) and made.classes is None and numbers == NUMBERS.tolist()
    assert found(NUMBERS, lk.Categorical(5))[0] == lk.Categorical(5)  # classes without rows
    assert lk.Categorical(classes=range(3)) == lk.Categorical(3)
    assert found(NUMBERS > 1, lk.Bernoulli(classes=[False, True]))[1] == (NUMBERS > 1).astype(int).tolist()


@pytest.mark.parametrize(
    "given",
    [
        pd.Series(pd.Categorical(TEXT, ORDER, ordered=True)),
        pd.Categorical(TEXT, ORDER, ordered=True),
        pl.Series(TEXT, dtype=pl.Enum(ORDER)),
    ],
)
def test_an_order_that_the_data_declare(given):
    expected = [ORDER.index(label) for label in TEXT]
    for kind in (lk.Ordinal, lk.Categorical):
        made, numbers = found(given, kind())
        assert made.classes == tuple(ORDER) and made.num_classes == 4 and numbers == expected
    numeric = pd.Series(pd.Categorical(ODD, [9, 7, 3], ordered=True))
    assert found(numeric, lk.Ordinal())[1] == (2 - NUMBERS).tolist()
    assert found(ODD, lk.Ordinal())[1] == NUMBERS.tolist()  # numbers have an order of their own


def test_declared_classes():
    likelihood = lk.Categorical(classes=ORDER)
    assert likelihood.num_classes == 4 and repr(likelihood).endswith("classes=('dog', 'bird', 'cat', 'emu'))")
    expected = [ORDER.index(label) for label in TEXT]
    assert found(TEXT, likelihood) == (likelihood, expected)
    assert (
        found(np.array(expected), likelihood)[1] == expected
    )  # whole numbers are class numbers where labels are text
    assert found(ODD, lk.Ordinal(classes=[9, 8, 7, 3]))[1] == [[9, 8, 7, 3].index(label) for label in ODD]
    features = bll.Features.from_tensors(torch.from_numpy(X))
    for inputs in (features, TensorDataset(torch.from_numpy(X))):
        rows = TrainingData.of(bll.LastLayer(likelihood), (inputs, TEXT))
        assert rows.in_order().tolist() == expected and rows.layer.likelihood == likelihood


def test_numbers_that_a_loader_gives():
    for classes, given in ((ORDER, NUMBERS), ([3, 7, 9], ODD)):
        data = TensorDataset(torch.from_numpy(X), torch.from_numpy(given))
        loader = DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(0))
        rows = TrainingData.of(bll.LastLayer(lk.Categorical(classes=classes)), loader)
        assert rows.in_order().tolist() == NUMBERS.tolist()
        passed = [(inputs, targets) for inputs, targets, _ in rows.batches(4)]
        order = [int((torch.from_numpy(X) == row).all(1).nonzero()) for inputs, _ in passed for row in inputs]
        assert torch.cat([targets for _, targets in passed]).tolist() == NUMBERS[order].tolist()


class Texts(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return torch.from_numpy(X[row]), TEXT[row]


class Numbered(Texts):
    def __getitem__(self, row):
        return torch.from_numpy(X[row]), int(ODD[row])


BAD = {
    "missing": ([None, *TEXT[1:]], lk.Categorical(), ValueError, r"1 that are missing \(first: row 0\)"),
    "NaN": (pd.Series([*TEXT[:-1], np.nan]), lk.Categorical(), ValueError, r"missing \(first: row 9\)"),
    "NA": (pd.Series([*TEXT[:-1], pd.NA], dtype="string"), lk.Categorical(), ValueError, "missing"),
    "null": (pl.Series([*TEXT[:-1].tolist(), None]), lk.Categorical(), ValueError, "missing"),
    "missing number": ([None, *ODD[1:].tolist()], lk.Categorical(), ValueError, "missing"),
    "NaN number": (
        np.where(ODD == 3, np.nan, ODD),
        lk.Categorical(),
        ValueError,
        "expected integer labels, got nan",
    ),
    "mixed": ([1, *TEXT[1:]], lk.Categorical(), ValueError, "all of one type, got int and str"),
    "broken": (NUMBERS + 0.5, lk.Categorical(), ValueError, "expected integer labels, got 2.5"),
    "broken, of two": (np.where(ODD > 3, 0.9, 0.1), lk.Bernoulli(), ValueError, "expected labels 0 or 1"),
    "one class": (["a"] * 10, lk.Categorical(), ValueError, "at least two classes, got only .'a'"),
    "one number": ([4] * 10, lk.Categorical(), ValueError, "at least two classes, got only .4"),
    "one of three": (["a"] * 10, lk.Categorical(3), ValueError, "at least two classes"),
    "too few": (TEXT, lk.Categorical(4), ValueError, r"of 4 classes, got 3: .*name all classes"),
    "too few numbers": (ODD, lk.Categorical(4), ValueError, "labels from 0 to 3, got 9 .*classes="),
    "too many": (TEXT, lk.Categorical(2), ValueError, r"of 2 classes, got 3: .*use Categorical\(3\)"),
    "not two": (TEXT, lk.Bernoulli(), ValueError, r"of 2 classes, got 3: .*use Categorical\(3\)"),
    "no order": (
        TEXT,
        lk.Ordinal(3),
        ValueError,
        r"in an order .*Ordinal\(classes=\[...\]\), or pass an ordered",
    ),
    "unseen": (
        TEXT,
        lk.Categorical(classes=["cat", "dog"]),
        ValueError,
        r"among .'cat', 'dog'., got .'bird'",
    ),
    "unseen number": (ODD, lk.Categorical(classes=[3, 7]), ValueError, r"among .3, 7., got .9"),
    "text for numbers": (TEXT, lk.Categorical(classes=[3, 7]), TypeError, r"among .3, 7., got other labels"),
    "floats for text": (
        NUMBERS * 1.0,
        lk.Categorical(classes=ORDER),
        TypeError,
        "got values of type torch.float64",
    ),
    "text for values": (TEXT, lk.Gaussian(), TypeError, r"expected numbers, got labels .*Categorical\(\)"),
    "dates": (
        np.array(["2020", "2021"], "datetime64[Y]")[NUMBERS % 2],
        lk.Categorical(),
        TypeError,
        "datetime64",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_are_told(case):
    given, likelihood, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        found(given, likelihood)


BAD_CLASSES = {
    "mixed": (lambda: lk.Categorical(classes=["a", 1]), TypeError, "all of one type, got .'a', 1"),
    "none": (lambda: lk.Categorical(classes=[]), TypeError, "labels"),
    "objects": (lambda: lk.Categorical(classes=[b"a", b"b"]), TypeError, "text, whole numbers or booleans"),
    "twice": (lambda: lk.Categorical(classes=["a", "a"]), ValueError, "different labels"),
    "halves": (lambda: lk.Categorical(classes=[0.5, 1.5]), ValueError, "numbers among them whole"),
    "a word": (lambda: lk.Categorical(classes="ab"), TypeError, "expected a list of labels"),
    "another number": (lambda: lk.Categorical(2, classes=["a", "b", "c"]), ValueError, "expected 2 labels"),
    "only one": (lambda: lk.Categorical(classes=["a"]), ValueError, "number >= 2, got 1"),
    "three of two": (lambda: lk.Bernoulli(classes=["a", "b", "c"]), ValueError, "expected 2 labels"),
    "two in order": (lambda: lk.Ordinal(classes=["a", "b"]), ValueError, "use Bernoulli"),
    "unknown number": (lambda: lk.Categorical().num_outputs(()), ValueError, r"Categorical\(num_classes\) or"),
    "loader": (
        lambda: TrainingData.of(bll.LastLayer(lk.Categorical()), DataLoader(Numbered())),
        ValueError,
        "no training targets in memory that say it",
    ),
    "items of text": (
        lambda: TrainingData.of(bll.LastLayer(lk.Categorical(3)), Texts()),
        ValueError,
        r"numbers as targets, got text .*classes.index\(label\)",
    ),
    "store of text": (lambda: bll.extract(None, (X, TEXT)), ValueError, "pass the labels beside the features"),
}  # fmt: skip


@pytest.mark.unchecked
@pytest.mark.parametrize("case", BAD_CLASSES)
def test_bad_declarations_are_told(case):
    make, kind, message = BAD_CLASSES[case]
    with pytest.raises(kind, match=message):
        make()


def test_numbers_and_labels_are_inverse():
    random = np.random.default_rng(1)
    for labels in (("b", "a", "ä", "10", ""), (7, -3, 2**53 + 1, 2**53), (True, False)):
        classes = Classes(labels)
        numbers = torch.from_numpy(random.integers(len(labels), size=50))
        given = classes.label_of(numbers)
        assert given.tolist() == [labels[number] for number in numbers.tolist()]
        text = isinstance(labels[0], str)
        back = found(given, lk.Categorical(classes=labels), random.normal(size=(50, 1)))[1] if text else None
        assert (back or classes.numbers_of(torch.from_numpy(given)).tolist()) == numbers.tolist()


def test_weights_of_classes_by_their_labels():
    weights = bll.class_weights(TEXT, {"bird": 1.0, "cat": 2.0, "dog": 3.0})
    assert weights.tolist() == (NUMBERS + 1.0).tolist()
    torch.testing.assert_close(bll.class_weights(TEXT), bll.class_weights(NUMBERS))
    with pytest.raises(ValueError, match=r"got none for .'dog'"):
        bll.class_weights(TEXT, {"bird": 1.0, "cat": 2.0})
