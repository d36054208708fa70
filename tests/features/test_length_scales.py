"""The evidence of kernels and labels against SciPy and scikit-learn, its gradient, and what is chosen by it."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from bll_pyro.features.kernel_evidence import JITTER, GaussianEvidence, LabelEvidence
from bll_pyro.features.length_scales import BIAS_VARIANCE, Form, KernelRows, Search, kernel_of

RANDOM = np.random.default_rng(0)
COLUMNS = torch.from_numpy(RANDOM.normal(size=(40, 3)))
VALUES = torch.from_numpy(RANDOM.normal(size=(40, 2)))
LABELS = (COLUMNS[:, :1] * COLUMNS[:, 1:2] > 0).double()
ONES = torch.ones(40, dtype=torch.float64)
LOGS = torch.tensor([-0.7, -1.0, 0.3, 0.2, 0.9, 0.5], dtype=torch.float64)


def rows_of(columns, responses, are_labels=False):
    weight = torch.ones(len(columns), dtype=torch.float64)
    return KernelRows(torch.as_tensor(columns), torch.as_tensor(responses), weight, are_labels)


def test_kernel_is_linear_plus_squared_exponential():
    x, lengths = COLUMNS.numpy(), LOGS[3:].exp().numpy()
    expected = ConstantKernel(np.exp(0.6)) * RBF(lengths)
    found = Form(3, 3).kernel(LOGS, COLUMNS)
    np.testing.assert_allclose(found, np.exp(-1.4) * x @ x.T + expected(x), rtol=1e-12, atol=1e-12)


def test_gaussian_evidence_is_the_density_of_a_multivariate_normal():
    kernel, noise = Form(3, 3).kernel(LOGS, COLUMNS), LOGS[1]
    whole = kernel + (torch.exp(2 * noise) + JITTER) * torch.eye(40, dtype=torch.float64)
    expected = -sum(multivariate_normal(cov=whole.numpy()).logpdf(y) for y in VALUES.mT.numpy())
    assert float(GaussianEvidence(VALUES, ONES)(kernel, noise)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("evidence", [GaussianEvidence, LabelEvidence])
def test_a_weight_is_a_number_of_rows(evidence):
    responses = VALUES if evidence is GaussianEvidence else LABELS
    repeats = torch.from_numpy(RANDOM.integers(1, 4, 40))
    kernel = Form(3, 3).kernel(LOGS, COLUMNS)
    index = torch.arange(40).repeat_interleave(repeats)
    once = evidence(responses, repeats.double())(kernel, LOGS[1])
    repeated = evidence(responses[index], torch.ones(len(index)).double())(kernel[index][:, index], LOGS[1])
    assert float(once) == pytest.approx(float(repeated), rel=1e-6)


def test_evidence_of_labels_is_that_of_scikit_learn():
    form, logs = Form(3, 3), LOGS.clone()
    logs[0] = -torch.inf  # no linear part
    theirs = GaussianProcessClassifier(
        ConstantKernel(np.exp(0.6)) * RBF(LOGS[3:].exp().numpy()), optimizer=None
    ).fit(COLUMNS.numpy(), LABELS[:, 0].numpy())
    found = LabelEvidence(LABELS, ONES)(form.kernel(logs, COLUMNS), logs[1])
    assert -float(found) == pytest.approx(theirs.log_marginal_likelihood_value_, abs=1e-4)


@pytest.mark.parametrize("evidence", [GaussianEvidence, LabelEvidence])
def test_gradients_are_those_of_finite_differences(evidence):
    form = Form(3, 3)
    responses = VALUES if evidence is GaussianEvidence else LABELS

    def value(point, slope=False):
        logs = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        found = evidence(responses, ONES)(form.kernel(logs, COLUMNS) + BIAS_VARIANCE, logs[1])
        if not slope:
            return float(found.detach())
        return torch.autograd.grad(found, logs)[0].numpy()

    slope, step = value(LOGS.numpy(), True), 1e-5 * np.eye(6)
    differences = [(value(LOGS.numpy() + one) - value(LOGS.numpy() - one)) / 2e-5 for one in step]
    np.testing.assert_allclose(slope, differences, rtol=1e-4, atol=1e-4)


def test_a_linear_table_needs_no_lengths_and_a_curved_one_has_them():
    x = RANDOM.normal(size=(100, 2))
    noise = 0.1 * RANDOM.normal(size=(100, 1))
    assert kernel_of(rows_of(x, x[:, :1] + noise), 100).lengths is None
    curved = kernel_of(rows_of(x, np.sin(2 * x[:, :1]) + noise), 100)
    assert curved.lengths[1] > 5 * curved.lengths[0]  # the second column says nothing
    assert curved.noise == pytest.approx(0.1, rel=0.3)


def test_labels_of_a_line_need_no_lengths_and_those_of_a_ring_have_one():
    x = RANDOM.normal(size=(120, 2))
    line = (x[:, :1] + 0.5 * RANDOM.normal(size=(120, 1)) > 0).astype(float)
    ring = ((x**2).sum(1, keepdims=True) > 1.4).astype(float)
    assert kernel_of(rows_of(x, line, True), 120).lengths is None
    assert kernel_of(rows_of(x, ring, True), 120).lengths is not None


def test_wide_tables_have_one_length():
    x = RANDOM.normal(size=(60, 20))
    found = kernel_of(rows_of(x, np.sin(x.mean(1, keepdims=True) * 6)), 60)
    assert found.lengths is None or bool((found.lengths == found.lengths[0]).all())
    assert kernel_of(rows_of(np.zeros((5, 2)), np.zeros((5, 1))), 5).lengths is None  # constant columns


def test_lengths_of_columns_begin_at_the_length_of_all():
    found = Search(Form(3, 1)).on(rows_of(COLUMNS, VALUES))
    start = Search(Form(3, 3), found).logs
    torch.testing.assert_close(Form(3, 3).kernel(start, COLUMNS), Form(3, 1).kernel(found.logs, COLUMNS))


def test_a_kernel_that_cannot_be_factored_has_no_evidence():
    kernel = -torch.eye(40, dtype=torch.float64)
    for evidence, responses in ((GaussianEvidence, VALUES), (LabelEvidence, LABELS)):
        scale = 1.0 if evidence is GaussianEvidence else 100.0
        assert bool(evidence(responses, ONES)(scale * kernel, LOGS[1]).isnan())
