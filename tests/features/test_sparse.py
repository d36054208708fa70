"""Sparse matrices: dense batch by batch, and together where a fit needs all rows."""

import numpy as np
import pytest
import torch
from scipy import sparse

import bll_pyro as bll
from bll_pyro.features.data import read
from bll_pyro.features.sparse import SparseSource

RANDOM = np.random.default_rng(0)
DENSE = RANDOM.poisson(0.3, size=(50, 4))
TARGETS = DENSE[:, 0] + 0.1 * RANDOM.normal(size=50)
KINDS = {"csr": sparse.csr_matrix, "csc": sparse.csc_array, "coo": sparse.coo_array, "lil": sparse.lil_matrix}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_dense_matrix(kind):
    source = read((KINDS[kind](DENSE), TARGETS), need_targets=True)
    plain = read((DENSE.astype(float), TARGETS), need_targets=True)
    assert isinstance(source, SparseSource) and source.num_rows == 50
    for one, other in (
        (source, plain),
        (source.subset(torch.arange(30, 3, -1)), plain.subset(torch.arange(30, 3, -1))),
    ):
        drawn = [torch.Generator().manual_seed(1) for _ in range(2)]
        for seeded in ((None, None), drawn):
            pairs = zip(
                one.batches(7, generator=seeded[0]), other.batches(7, generator=seeded[1]), strict=True
            )
            assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)
    assert torch.equal(source.tensors()[0], plain.tensors()[0]) and source.scan()[0] == plain.scan()[0]


def test_a_fit_and_its_predictions():
    layer, matrix = bll.LastLayer(bll.likelihoods.Gaussian()), sparse.csr_array(DENSE)
    fit = bll.fit(layer, (matrix, TARGETS), inference=bll.Exact())
    expected = bll.fit(layer, (DENSE, TARGETS), inference=bll.Exact())
    assert torch.equal(fit.predict(matrix).mean, expected.predict(DENSE).mean)
    assert torch.equal(fit.predict(DENSE).scale, expected.predict(matrix).scale)
    rows = fit.rows(matrix, TARGETS)
    assert torch.equal(rows.features, torch.from_numpy(DENSE.astype(float)))
    backbone = torch.nn.Linear(4, 2).double()
    through = bll.fit(layer, (matrix, TARGETS), backbone, bll.Exact())
    assert torch.equal(through.predict(matrix).mean, through.predict(DENSE.astype(float)).mean)


def test_a_fit_needs_memory_for_the_dense_matrix_and_a_prediction_for_a_batch(monkeypatch):
    layer, matrix = bll.LastLayer(bll.likelihoods.Gaussian()), sparse.csr_array(DENSE.astype(float))
    fit = bll.fit(layer, (matrix, TARGETS), inference=bll.Exact())
    expected = fit.predict(matrix).mean
    monkeypatch.setattr("bll_pyro.features.arrays.MAX_DENSE_BYTES", 50 * 4 * 8 - 1)
    with pytest.raises(
        ValueError, match=r"inputs of data: expected a sparse array of at most.*\[50, 4\].*TruncatedSVD"
    ):
        bll.fit(layer, (matrix, TARGETS), inference=bll.Exact())
    monkeypatch.setattr("bll_pyro.fitting.reading.PREDICTION_ROWS", 20)
    torch.testing.assert_close(fit.predict(matrix).mean, expected)
