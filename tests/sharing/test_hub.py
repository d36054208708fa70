"""Fits on the hub, by its own client against a server on loopback: there and back, the card, what is refused and why."""

import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
import torch
from hub_stand_in import Hub, commit_id
from huggingface_hub import constants

import bll_pyro as bll
from bll_pyro.evaluation import Evaluation
from bll_pyro.sharing import model_card

FEATURES = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
LABELS = (FEATURES[:, 0] > 0).long()


@pytest.fixture(scope="module")
def fit() -> bll.Fit:
    layer = bll.LastLayer(bll.likelihoods.Categorical(2))
    made = bll.fit(layer, (FEATURES[:100], LABELS[:100]), inference=bll.Laplace())
    detector = bll.ood.Detector(bll.ood.Leverage(), alpha=0.1).calibrate(made, FEATURES[100:200])
    return made.with_detector(detector)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The client talks to the server, which the environment would say before it is imported."""
    server = Hub()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", Hub.TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol, with a log file of its own
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def test_there_and_back(hub: Hub, fit: bll.Fit) -> None:
    """Same predictions and verdicts; the next fit replaces the files of the first, which stays under its commit."""
    address = fit.push_to_hub("me/digits")
    first = hub.commits["me/digits"][-1]
    assert address.endswith(commit_id(first))
    loaded = bll.load("hf://me/digits")
    expected, got = fit.predict(FEATURES[200:]), loaded.predict(FEATURES[200:])
    torch.testing.assert_close(got.probs, expected.probs)
    assert torch.equal(got.ood.p_value, expected.ood.p_value)

    other = bll.fit(fit.layer, (FEATURES[100:200], LABELS[100:200]), inference=bll.Laplace())
    other.push_to_hub("me/digits")
    assert len([name for name in hub.commits["me/digits"][-1] if name.endswith(".safetensors")]) == 1
    assert bll.load("hf://me/digits").fingerprint == other.fingerprint
    assert bll.load(f"hf://me/digits@{commit_id(first)}").fingerprint == fit.fingerprint


def test_a_copy_serves_without_the_hub(hub: Hub, fit: bll.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    fit.push_to_hub("me/digits")
    bll.load("hf://me/digits")
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert bll.load("hf://me/digits").fingerprint == fit.fingerprint
    with pytest.raises(
        ValueError, match=r"load: expected to reach .*me/other.*; check the network and HF_HUB_OFFLINE"
    ):
        bll.load("hf://me/other")
    with pytest.raises(
        ValueError, match=r"push_to_hub: expected to reach .*; check the network and HF_HUB_OFFLINE"
    ):
        fit.push_to_hub("me/digits")


def test_what_is_refused(hub: Hub, fit: bll.Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"load: expected a repository .*me/missing that this account may see, got none"
    ):
        bll.load("hf://me/missing")
    fit.push_to_hub("me/gated")
    with pytest.raises(
        ValueError, match=r"expected access to .*me/gated, got a gated repository; accept its terms"
    ):
        bll.load("hf://me/gated")
    fit.push_to_hub("me/digits")
    with pytest.raises(ValueError, match=r"expected a branch, tag or commit of .*me/digits"):
        bll.load("hf://me/digits@v9")
    hub.commits["me/network"] = [{"model.safetensors": b"", "README.md": b""}]
    with pytest.raises(
        ValueError,
        match=r"expected an empty repository or one with a fit, got me/network with model.safetensors",
    ):
        fit.push_to_hub("me/network")
    with pytest.raises(ValueError, match=r"expected a saved fit in"):
        bll.load("hf://me/network")
    files = hub.commits["me/digits"][-1]
    name = next(name for name in files if name.startswith("posterior"))
    hub.commits["me/altered"] = [files | {name: files[name][:-1] + b"\0\0"}]
    with pytest.raises(ValueError, match=r"load: expected \d+ bytes in .*: the file was cut or altered"):
        bll.load("hf://me/altered")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match=r"status 401.*log in with `hf auth login`, or set HF_TOKEN"):
        fit.push_to_hub("me/digits")
    assert hub.commits["me/digits"][-1] == files and hub.commits["me/network"][-1].keys() == {
        "model.safetensors",
        "README.md",
    }


@pytest.mark.parametrize(
    "address", ["hf://", "hf://digits", "hf://me/digits/more", "hf://me/../x", "hf://me/di gits"]
)
def test_addresses_that_are_none(address: str, fit: bll.Fit) -> None:
    with pytest.raises(ValueError, match=r'load: expected "hf://owner/name" or "hf://owner/name@revision"'):
        bll.load(address)
    with pytest.raises(ValueError, match=r'push_to_hub: expected "owner/name"'):
        fit.push_to_hub(address.removeprefix("hf://"))


def test_without_the_package(fit: bll.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"load: .*pip install 'bll-pyro\[hub\]'"):
        bll.load("hf://me/digits")
    with pytest.raises(ModuleNotFoundError, match=r"push_to_hub: .*pip install 'bll-pyro\[hub\]'"):
        fit.push_to_hub("me/digits")


def test_the_card(fit: bll.Fit) -> None:
    """Metadata that the hub's own reader accepts, code that runs, and the numbers of the fit."""
    evaluation = Evaluation(
        {
            "Bayesian": {"NLL": 0.1234, "ECE": 0.02, "AUROC, epistemic": None},
            "plain head": {"NLL": 0.2, "ECE": 0.05, "AUROC, epistemic": None},
        }
    )
    text = model_card(fit, "me/digits", evaluation)
    card = huggingface_hub.ModelCard(text)
    assert card.data.library_name == "bll-pyro" and "uncertainty-estimation" in card.data.tags
    assert (
        "| Bayesian | 0.1234 | 0.0200 | - |" in text
        and "at most 0.1 raises an alarm" in text
        and "Leverage" in text
    )
    assert f"recalibrated: `{fit.recalibration!r}`" in text
    code = text.split("```python\n")[1].split("```")[0]
    assert 'bll.load("hf://me/digits")' in code
    compile(code, "card", "exec")
    bare = model_card(fit.with_detector(None), "me/digits")
    assert "Not measured when it was shared" in bare and "shared without a detector" in bare
