"""Inputs that are a dictionary of arrays: read, fitted, predicted, stored, trained on; and what goes wrong."""

import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.features.data import read

RANDOM = torch.Generator().manual_seed(0)
NUMBERS, CODES = torch.randn(80, 3, generator=RANDOM), torch.arange(80) % 4
LABELS = ((NUMBERS[:, 0] + 0.5 * (CODES == 1)) > 0).long()
ROWS = {"numbers": NUMBERS, "codes": CODES}
LAYER = bll.LastLayer(bll.likelihoods.Categorical(num_classes=2))


class Joined(nn.Module):
    """A table of numbers beside an embedding of codes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.hidden = nn.Embedding(4, 2), nn.Linear(5, 6)

    def forward(self, rows):
        joined = torch.cat([rows["numbers"], self.embedding(rows["codes"])], 1)
        return torch.tanh(self.hidden(joined))


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return len(LABELS)

    def __getitem__(self, i):
        return {"numbers": NUMBERS[i], "codes": CODES[i]}, LABELS[i]


def test_batches_subsets_and_fingerprints_are_those_of_a_dataset():
    source, other = read((ROWS, LABELS), need_targets=True), read(Items(), need_targets=True)
    assert source.num_rows == 80 and source.in_memory
    for (rows, targets), (rows_too, targets_too) in zip(source.batches(30), other.batches(30), strict=True):
        assert targets.equal(targets_too) and all(rows[name].equal(rows_too[name]) for name in ROWS)
    assert source.scan()[0] == other.scan()[0]
    index = torch.tensor([5, 1, 70])
    (rows, targets), *_ = source.subset(index).batches(3)
    assert rows["numbers"].equal(NUMBERS[index]) and targets.equal(LABELS[index])
    shuffled = [y for _, y in source.batches(9, generator=torch.Generator().manual_seed(1))]
    assert torch.cat(shuffled).sum() == LABELS.sum() and not torch.cat(shuffled).equal(LABELS)


def test_fit_predict_and_store(tmp_path):
    network = Joined()
    expected = bll.fit(LAYER, Items(), network).predict(ROWS).probs
    arrays = {name: value.numpy() for name, value in ROWS.items()}
    for data in ((ROWS, LABELS), (arrays, LABELS.numpy())):
        fit = bll.fit(LAYER, data, network, store=tmp_path)
        torch.testing.assert_close(fit.predict(arrays).probs, expected)
    stored = bll.extract(network, ROWS, store=tmp_path)
    assert stored.key == bll.extract(network, Items(), store=tmp_path).key
    new = ROWS | {"numbers": NUMBERS + 0.1}
    detector = bll.ood.Detector(bll.ood.Mahalanobis()).calibrate(fit, new, train=Items())
    assert detector.detect(ROWS).p_value.shape == (80,)
    calibrated = bll.calibrate(fit, ROWS, LABELS)
    assert calibrated.predict(ROWS).label.equal(fit.predict(ROWS).label)


@pytest.mark.filterwarnings("ignore:the ELBO was still rising")
def test_weights_and_joint_training():
    inference = bll.SVI(backbone_learning_rate=1e-2, num_epochs=3, batch_size=20)
    weight = torch.arange(80.0)
    network = Joined()
    fit = bll.fit(LAYER, (ROWS, LABELS), network, inference, sample_weight=weight)
    # 26 rows were kept for it in a first training, the second has all
    assert fit.num_rows == 80 and fit.recalibration.found_on.num_rows == 26
    assert not fit.backbone.hidden.weight.equal(network.hidden.weight)
    assert (fit.predict(ROWS).label == LABELS).float().mean() > 0.8


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"numbers": NUMBERS, "codes": CODES[:3]},
            r"same rows, got \{'numbers': 80, 'codes': 3\} \(rows by name\)",
        ),
        ({}, "got an empty one"),
        (
            {"numbers": NUMBERS, "codes": 3},
            "'codes' of inputs of data: expected one entry per row, got a single number",
        ),
        ({"numbers": torch.full((80, 3), torch.nan)}, "'numbers' of inputs of data: expected finite values"),
    ],
)
def test_wrong_dictionaries(rows, message):
    with pytest.raises(ValueError, match=message):
        bll.fit(LAYER, (rows, LABELS), Joined())


def test_words_are_no_numbers():
    with pytest.raises(TypeError, match="'texts' of inputs of data: expected real numbers"):
        bll.fit(LAYER, ({"texts": ["a"] * 80}, LABELS), Joined())


def test_targets_among_the_inputs():
    with pytest.raises(
        ValueError, match=r"got dictionaries with 'numbers', 'label'; make pairs.*item.pop\('label'\)"
    ):
        bll.fit(LAYER, {"numbers": NUMBERS, "label": LABELS}, Joined())


def test_a_dictionary_needs_a_backbone():
    with pytest.raises(ValueError, match=r"got a dictionary of \['numbers', 'codes'\]; pass backbone"):
        bll.fit(LAYER, (ROWS, LABELS))
    fit = bll.fit(LAYER, (NUMBERS, LABELS))
    for call in (fit.predict, fit.draw, fit.features):
        with pytest.raises(ValueError, match=r"got a dict; this fit has no backbone"):
            call(ROWS)
    with pytest.raises(ValueError, match="expected inputs that it can run on, got a dictionary of"):
        bll.fit(LAYER, (ROWS, LABELS), nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"an array or a Features store, got dict"):
        bll.prior_predictive(LAYER, ROWS)
