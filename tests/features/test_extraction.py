"""Extraction runs a backbone once per row, keeps what came out, and opens it again for the same weights and data."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bll_pyro.features.extraction import extract
from bll_pyro.features.from_timm import timm_backbone
from bll_pyro.features.store import Features
from bll_pyro.shards.manifest import MANIFEST

N = 21
X = torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N)


class Counting(nn.Module):
    """A small convolutional network that counts the rows it has seen."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
        seen = self.seen = nn.Identity()  # not a plain attribute: counting must not change the fingerprint
        seen.rows = _Count()

    def forward(self, x):
        self.seen.rows.value += len(x)
        return self.body(x)


class _Count:
    value = 0


def expected(backbone, x=X):
    backbone.eval()
    with torch.no_grad():
        features = backbone.body(x)
    backbone.train()
    return features


@pytest.mark.parametrize("store", [False, True])
def test_features_are_those_of_the_backbone_in_eval_mode(tmp_path, store):
    backbone = Counting()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    features = extract(backbone, (X, Y), store=tmp_path if store else None, batch_size=4)
    assert backbone.seen.rows.value == N
    torch.testing.assert_close(features.tensor(), expected(backbone))
    assert torch.equal(features.targets, Y)
    assert all(before[name].equal(tensor) for name, tensor in backbone.state_dict().items())
    assert all(part.training for part in backbone.modules())
    assert (features.path is not None) == store


def test_a_second_call_opens_what_the_first_kept(tmp_path):
    backbone = Counting()
    first = extract(backbone, (X, Y), store=tmp_path)
    for data in ((X.numpy(), Y.numpy()), TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), batch_size=5)):
        again = extract(backbone, data, store=tmp_path, batch_size=3)
        assert again.key == first.key
    again = extract(Counting(), (X, Y), store=tmp_path)  # another object with the same weights
    assert torch.equal(again.tensor(), first.tensor())
    backbone.eval().requires_grad_(False)
    extract(backbone, (X, Y), store=tmp_path)
    assert backbone.seen.rows.value == N
    assert os.listdir(tmp_path) == [first.key]


def test_a_shuffling_loader_finds_its_features_again(tmp_path):
    backbone = Counting()
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)
    first = extract(backbone, loader, store=tmp_path)
    again = extract(backbone, loader, store=tmp_path)
    assert backbone.seen.rows.value == N
    assert torch.equal(again.targets, first.targets)
    torch.testing.assert_close(first.tensor(), expected(backbone)[first.targets])


def test_another_backbone_data_or_type_gives_another_key(tmp_path):
    def key(backbone=None, data=(X, Y), **kwargs):
        return extract(backbone or Counting(), data, store=tmp_path, **kwargs).key

    trained = Counting()
    with torch.no_grad():
        trained.body[0].bias[0] += 1e-3
    statistics = Counting()
    statistics.body[1].running_var[0] += 1e-3
    epsilon = Counting()
    epsilon.body[1].eps = 1e-2
    keys = [
        key(),
        key(Counting(seed=1)),
        key(trained),
        key(statistics),
        key(epsilon),
        key(data=(X + 1e-3, Y)),
        key(data=(X.double(), Y)),
        key(dtype=torch.float64),
    ]
    assert len(set(keys)) == len(keys) == len(os.listdir(tmp_path))


def test_the_same_inputs_share_features_and_keep_their_own_targets(tmp_path):
    backbone = Counting()
    first = extract(backbone, (X, Y), store=tmp_path)
    other = extract(backbone, (X, Y + 1), store=tmp_path)
    alone = extract(backbone, X, store=tmp_path)
    assert len(os.listdir(tmp_path)) == 1
    assert torch.equal(first.targets + 1, other.targets) and alone.targets is None
    assert torch.equal(first.tensor(), other.tensor()) and torch.equal(first.tensor(), alone.tensor())


def test_a_counter_in_the_backbone_does_not_defeat_the_store(tmp_path):
    class Counter(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.num_rows, self.scale = 0, scale

        def forward(self, x):
            self.num_rows += len(x)
            return x.flatten(1).float() * self.scale

    backbone = Counter(2.0)
    for _ in range(3):
        extract(backbone, (X, Y), store=tmp_path)
    assert backbone.num_rows == len(X)
    assert extract(Counter(3.0), (X, Y), store=tmp_path).key != extract(backbone, X, store=tmp_path).key


def test_the_key_of_a_timm_backbone_survives_saving_and_ignores_what_moves(tmp_path):
    from bll_pyro.features.backbones import rebuilt

    images = torch.rand(3, 3, 32, 32)
    save_file(timm_backbone("resnet10t").model.state_dict(), tmp_path / "w.safetensors")
    backbone = timm_backbone("resnet10t", pretrained=tmp_path / "w.safetensors")
    loaded = rebuilt(backbone.config | {"unfreeze": 1})
    loaded.load_state_dict(backbone.state_dict())
    keys = {extract(b, images, store=tmp_path / "f").key for b in (backbone, loaded)}
    assert len(keys) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_type_to_keep(tmp_path, dtype):
    backbone = Counting()
    features = extract(backbone, X, store=tmp_path, dtype=dtype)
    assert features.dtype == dtype
    torch.testing.assert_close(features.tensor(), expected(backbone).to(dtype), rtol=1e-2, atol=1e-2)
    assert features.targets is None


def test_without_a_backbone_the_inputs_are_kept(tmp_path):
    rows = np.arange(12.0).reshape(4, 3)
    features = extract(None, (rows, [0, 1, 0, 1]), store=tmp_path, dtype=torch.float64)
    assert features.tensor().tolist() == rows.tolist()
    assert features.targets.tolist() == [0, 1, 0, 1]
    again = extract(None, features, dtype=torch.float64)
    assert again.tensor().tolist() == rows.tolist()


def test_the_random_state_of_the_caller_stays():
    state = torch.get_rng_state()
    extract(Counting(), DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True))
    extract(Counting(), TensorDataset(X, Y))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_do_not_change_the_features(num_workers):
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return X[i], i

    backbone = Counting()
    features = extract(backbone, Slow(), num_workers=num_workers, batch_size=4)
    torch.testing.assert_close(features.tensor(), expected(backbone))
    assert torch.equal(features.targets, Y)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_backbone_moves_to_the_device_and_back():
    backbone = Counting()
    features = extract(backbone, (X, Y), device="cuda")
    assert next(backbone.parameters()).device.type == "cpu"
    torch.testing.assert_close(features.tensor(), expected(backbone), rtol=1e-3, atol=1e-3)


# ---- what goes wrong


class Broken(Counting):
    """Row 13 comes out as NaN."""

    value = torch.nan

    def forward(self, x):
        features = super().forward(x)
        features[(x == X[13]).all((1, 2, 3)), 2] = self.value
        return features


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("store", [False, True])
def test_features_that_are_not_finite_name_the_row(tmp_path, store, value):
    backbone = Broken()
    backbone.value = value
    with pytest.raises(ValueError, match=r"1 that are NaN or infinite, the first in row 13;"):
        extract(backbone, (X, Y), store=tmp_path if store else None, batch_size=4)
    assert os.listdir(tmp_path) == []
    assert all(part.training for part in backbone.modules())


def test_features_too_large_for_the_type_are_an_error():
    backbone = Counting()
    with torch.no_grad():
        backbone.body[1].bias += 1e5
    with pytest.raises(ValueError, match=r"torch.float16.*use a wider dtype"):
        extract(backbone, X, dtype=torch.float16)


def test_an_output_of_another_shape_ends_the_pass_at_once(tmp_path):
    class Map(Counting):
        def forward(self, x):
            return super().forward(x).reshape(len(x), 4, 4, 4)

    backbone = Map()
    with pytest.raises(ValueError, match="pool the map"):
        extract(backbone, X, store=tmp_path, batch_size=2)
    assert backbone.seen.rows.value == 2
    assert os.listdir(tmp_path) == []


def test_an_interrupted_extraction_leaves_no_store_and_the_earlier_one_whole(tmp_path):
    earlier = extract(Counting(), (X, Y), store=tmp_path)

    class Interrupted(Counting):
        def forward(self, x):
            if self.seen.rows.value > 10:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        extract(Interrupted(), (X, Y), store=tmp_path, batch_size=4)
    assert os.listdir(tmp_path) == [earlier.key]
    Features.open(earlier.path).verify()


def test_a_damaged_store_is_an_error_and_not_an_answer(tmp_path):
    features = extract(Counting(), (X, Y), store=tmp_path)
    other = extract(Counting(seed=1), (X, Y), store=tmp_path)
    (features.path / MANIFEST).unlink()
    with pytest.raises(ValueError, match="delete the folder"):
        extract(Counting(), (X, Y), store=tmp_path)
    other.path.rename(tmp_path / "spare")
    features.path.rename(tmp_path / "damaged")
    (tmp_path / "spare").rename(features.path)  # the features of the other backbone under this one's key
    with pytest.raises(ValueError, match="renamed or moved"):
        extract(Counting(), (X, Y), store=tmp_path)


def test_bad_arguments():
    with pytest.raises(ValueError, match="expected a whole number >= 1, got 0"):
        extract(None, torch.zeros(3, 2), batch_size=0)
    with pytest.raises(ValueError, match="dtype: expected a floating-point type"):
        extract(None, torch.zeros(3, 2), dtype=torch.int64)
    with pytest.raises(ValueError, match="at least 1 row"):
        extract(None, torch.zeros(0, 2))
