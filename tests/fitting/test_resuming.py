"""Checkpoints in one process: what is not repeated, what is refused, and what a full disk or a damaged file does."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_cases import INPUTS, LABELS, LAYER, Augmented, network
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bll_pyro as bll
from bll_pyro import tensorfile
from bll_pyro.checkpoint import folder as checkpoints
from bll_pyro.files import only_writer
from bll_pyro.fitting import resuming
from bll_pyro.inference.nuts import chains
from bll_pyro.inference.prior_scale import choose
from bll_pyro.inference.svi import svi as svi_file
from bll_pyro.inference.svi.train import Stepper

pytestmark = pytest.mark.filterwarnings(
    "ignore:the ELBO was still rising", "ignore:no rows were kept", "ignore:NUTS"
)
STEPS = bll.SVI(batch_size=16, num_epochs=3)  # 9 steps
JOINT = bll.SVI(backbone_learning_rate=1e-2, num_epochs=3, batch_size=16)


class Killed(BaseException):
    """Stands for a kill: nothing is written after it."""


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state after every step is kept."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> "Steps":
    """Counts steps, and kills before one."""
    counter, step = Steps(), Stepper.step

    def counted(self: Stepper, gradient: Callable[..., Tensor], *batch: Any) -> Tensor:
        if counter.number == counter.kill_before:
            raise Killed
        counter.number += 1
        return step(self, gradient, *batch)

    monkeypatch.setattr(Stepper, "step", counted)
    return counter


class Steps:
    """Number of steps so far, and that before which the fit is killed."""

    number = 0
    kill_before: int | None = None


def fit(checkpoint: Path | None = None, **changes: Any) -> bll.Fit:
    given = {"layer": LAYER, "data": (INPUTS, LABELS), "inference": STEPS, "calibration": None} | changes
    return bll.fit(given.pop("layer"), given.pop("data"), **given, checkpoint=checkpoint)


def killed(steps: Steps, before: int, checkpoint: Path, **changes: Any) -> None:
    steps.number, steps.kill_before = 0, before
    with pytest.raises(Killed):
        fit(checkpoint, **changes)
    steps.number, steps.kill_before = 0, None


def same(one: bll.Fit, other: bll.Fit) -> None:
    assert one.fingerprint == other.fingerprint
    assert one.trace.elbo is not None and torch.equal(one.trace.elbo, other.trace.elbo)
    assert one.trace.validation == other.trace.validation
    assert (one.trace.converged, one.trace.messages) == (other.trace.converged, other.trace.messages)
    if other.backbone is not None:
        for value, expected in zip(
            one.backbone.state_dict().values(), other.backbone.state_dict().values(), strict=True
        ):
            assert torch.equal(value, expected)


# ---- going on


CASES = [(bll.guides.Diagonal(), before) for before in (1, 3, 4, 8)] + [
    (bll.guides.LowRank(rank=1), 5),
    (bll.guides.MAP(), 5),
]


@pytest.mark.parametrize(
    ("guide", "before"), [*CASES, pytest.param(bll.guides.Flow(), 5, marks=pytest.mark.slow)], ids=str
)
def test_frozen_steps_go_on_where_they_were(tmp_path: Path, steps: Steps, guide: Any, before: int) -> None:
    """In a pass and between passes, with gradients by hand, in output space, and Pyro's; with validation and its best state."""
    changes = {
        "inference": bll.SVI(guide=guide, batch_size=16, num_epochs=3, learning_rate=0.5, patience=1),
        "validation_data": (INPUTS.flip(0), LABELS),
    }
    whole, number = fit(**changes), steps.number
    if before >= number:  # it ended early
        before = number - 1
    killed(steps, before, tmp_path / "run", **changes)
    same(fit(tmp_path / "run", **changes), whole)
    assert steps.number == number - before


def test_joint_training_and_its_final_stage_are_each_done_once(tmp_path: Path, steps: Steps) -> None:
    """Killed in the joint part, in the final one, and after all."""
    held_out = {"validation_data": (INPUTS.flip(0), LABELS)}  # then the final stage takes steps
    changes = {"inference": JOINT, "data": (INPUTS, LABELS)} | held_out
    whole, number = fit(backbone=network(), **changes), steps.number
    assert number == 15
    killed(steps, 4, tmp_path / "run", backbone=network(), **changes)
    killed(steps, 8, tmp_path / "run", backbone=network(), **changes)  # 5 left of the joint part
    kept = {path.stem for path in (tmp_path / "run").glob("*.safetensors")}
    assert kept == {"start", "joint", "features", "features-2", "on-features"}
    made = fit(tmp_path / "run", backbone=network(), **changes)
    assert steps.number == number - 12
    same(made, whole)
    assert torch.equal(made.trace.joint.elbo, whole.trace.joint.elbo)
    steps.kill_before = 0
    same(fit(tmp_path / "run", backbone=network(), **changes), whole)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint.json", "fit"]


def test_the_choice_of_a_prior_scale_is_kept(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after it, the second training goes on; the first, and the folds, are not fitted again."""
    inference = bll.SVI(batch_size=16, num_epochs=3, scale_criterion=bll.criteria.CrossValidation())
    monkeypatch.setattr(svi_file, "MIN_STEPS", 9)
    changes = {"inference": inference, "data": (INPUTS[:20], LABELS[:20])}
    whole, number = fit(**changes), steps.number
    killed(steps, number - 3, tmp_path / "run", **changes)
    monkeypatch.setattr(choose, "_searched", lambda *_: pytest.fail("it was chosen again"))
    made = fit(tmp_path / "run", **changes)
    assert steps.number == 3
    same(made, whole)


def test_features_are_made_once(tmp_path: Path, steps: Steps) -> None:
    class Counted(nn.Linear):
        passes = 0

        def forward(self, inputs: Tensor) -> Tensor:
            type(self).passes += 1
            return nn.functional.linear(inputs, self.weight, self.bias)

    with torch.random.fork_rng():
        backbone = Counted(4, 3)
    whole = fit(backbone=backbone)
    killed(steps, 4, tmp_path / "run", backbone=backbone)
    passes = Counted.passes
    made = fit(tmp_path / "run", backbone=backbone)
    assert Counted.passes == passes and made.backbone is backbone and made.store is None
    same(made, whole)


@pytest.mark.nuts
def test_nuts_keeps_the_chains_that_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inference = bll.NUTS(num_warmup=5, num_samples=4, num_chains=4, max_tree_depth=3, num_processes=1)
    normal = layer(bll.priors.Normal(1.0))
    run_chain, seeds = chains.run_chain, list[int]()

    def counted(density: Any, seed: int, *others: Any) -> Any:
        if len(seeds) == 2:
            raise KeyboardInterrupt
        seeds.append(seed)
        return run_chain(density, seed, *others)

    whole = fit(layer=normal, inference=inference)
    monkeypatch.setattr(chains, "run_chain", counted)
    with pytest.raises(KeyboardInterrupt, match=r"what was done is in .*run: the same call"):
        fit(tmp_path / "run", layer=normal, inference=inference)
    first, seeds = seeds, [0]
    monkeypatch.setattr(chains, "run_chain", lambda *args: (seeds.append(args[1]), run_chain(*args))[1])
    made = fit(tmp_path / "run", layer=normal, inference=inference)
    assert len(first) == 2 and len(seeds) == 3 and not set(first) & set(seeds)
    for name, draws in whole.posterior.draws.items():
        assert torch.equal(made.posterior.draws[name], draws)
    for name, values in whole.trace.by_draw.items():
        assert torch.equal(torch.as_tensor(made.trace.by_draw[name]), torch.as_tensor(values)), name


# ---- refusals


class Doubled(nn.Linear):
    """The same weights with other features."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * nn.functional.linear(inputs, self.weight, self.bias)


def linear(kind: type[nn.Linear] = nn.Linear, bias: float = 0.0) -> nn.Linear:
    made = kind(4, 3, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        made.weight.fill_(0.5)
        made.bias.fill_(bias)
    return made


def layer(prior: Any) -> bll.LastLayer:
    return bll.LastLayer(bll.likelihoods.Categorical(num_classes=2), prior)


WEIGHT = torch.ones(48)
EDITED = INPUTS.clone()
EDITED[47, 3] += 1e-3
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "prior": ({"layer": layer(bll.priors.Normal(2.0))}, r"layer\.prior\.scale \(None there, 2\.0 now\)"),
    "kind of prior": ({"layer": layer(bll.priors.StudentT(4.0))}, r"layer\.prior \(priors.Normal there, priors.StudentT now\)"),
    "steps": ({"inference": bll.SVI(batch_size=16, num_epochs=4)}, r"inference\.num_epochs \(3 there, 4 now\)"),
    "seed": ({"seed": 1}, r"seed \(0 there, 1 now\)"),
    "inputs": ({"data": (EDITED, LABELS)}, r"data\.inputs"),
    "targets": ({"data": (INPUTS, 1 - LABELS)}, r"data\.targets"),
    "rows": ({"data": (INPUTS[:40], LABELS[:40])}, r"data\.num_rows \(48 there, 40 now\)"),
    "weights": ({"sample_weight": WEIGHT}, r"data\.sample_weight"),
    "validation": ({"validation_data": (INPUTS, LABELS)}, r"validation_data \(None there, rows in memory now\)"),
    "calibration": ({"calibration": 0.25}, r"calibration \(None there, 0\.25 now\)"),
    "batch size": ({"batch_size": 7}, r"batch_size \(256 there, 7 now\)"),
    "weights of the backbone": ({"backbone": linear(bias=1.0)}, r"backbone\.code_and_weights"),
    "code of the backbone": ({"backbone": linear(Doubled)}, r"backbone \(Linear there, Doubled now\)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun") / "run"
    fit(folder, backbone=linear())
    return folder


@pytest.mark.parametrize("case", OTHERS)
def test_the_folder_of_another_fit_is_refused_by_what_differs(begun: Path, case: str) -> None:
    changes, name = OTHERS[case]
    with pytest.raises(
        ValueError, match=f"what differs: {name}.*\\. Choose another folder, or delete this one"
    ) as caught:
        fit(begun, **{"backbone": linear()} | changes)
    assert str(begun) in str(caught.value)


def test_the_folder_of_another_version_is_refused(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        resuming, "version", lambda name: "9.9" if name == "torch" else resuming_version(name)
    )
    with pytest.raises(ValueError, match=r"versions\.torch \(.* there, '?9\.9'? now\)"):
        fit(begun, backbone=linear())


resuming_version = resuming.version


def test_rows_of_a_dataset_are_compared_by_some_of_them(tmp_path: Path) -> None:
    """Random augmentation is no difference, other rows are, and the loader's own generator stays where it was."""

    class Moved(Augmented):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            inputs, label = super().__getitem__(index)
            return inputs + float(index > 40), label

    def loader(dataset: Any, seed: int = 5) -> DataLoader[Any]:
        return DataLoader(dataset, 16, shuffle=True, generator=torch.Generator().manual_seed(seed))

    whole = fit(data=loader(Augmented()))
    same(fit(tmp_path / "run", data=loader(Augmented())), whole)
    same(fit(tmp_path / "run", data=loader(Augmented())), whole)
    with pytest.raises(ValueError, match=r"what differs: data\.inputs\. "):
        fit(tmp_path / "run", data=loader(Moved()))
    with pytest.raises(ValueError, match=r"data\.seeds\[0\] \(5 there, 6 now\)"):
        fit(tmp_path / "run", data=loader(Augmented(), 6))
    other = DataLoader(Augmented(), 8, shuffle=True, generator=torch.Generator().manual_seed(5))
    with pytest.raises(ValueError, match=r"data\.batches \(3 there, 6 now\)"):
        fit(tmp_path / "run", data=other)


def test_a_folder_with_other_files_or_another_fit_at_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError,
        match=r"expected a new folder or one with a checkpoint.json, got .* with 'notes.txt' in it",
    ):
        fit(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match=r"expected a folder, got the file .*notes.txt; choose another path"):
        fit(tmp_path / "notes.txt")
    monkeypatch.setattr(checkpoints, "PATIENCE", 0.05)
    with (
        only_writer(tmp_path / "run"),
        pytest.raises(
            ValueError, match="which another process or thread is using; wait for it to end, or choose"
        ),
    ):
        fit(tmp_path / "run")


def test_a_declaration_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, steps: Steps
) -> None:
    inference = bll.SVI(guide=bll.guides.Custom(lambda features, targets, num_rows: None))
    with pytest.raises(TypeError, match="cannot be written to a file"):
        fit(tmp_path / "run", inference=inference)
    assert not steps.number and not (tmp_path / "run").exists()


# ---- full disks and damaged files


def test_a_full_disk_leaves_the_state_before_and_the_fit_goes_on(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit()
    killed(steps, 4, tmp_path / "run")
    state = tmp_path / "run" / "on-features.safetensors"
    before, write, full = state.read_bytes(), tensorfile.write_tensors, [True]

    def fails(path: Path, *args: Any) -> str:
        if not full[0]:
            return write(path, *args)
        path.write_bytes(b"the first blocks")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorfile, "write_tensors", fails)
    with pytest.warns(UserWarning, match="No space left on device") as warned:
        made = fit(tmp_path / "run")
    same(made, whole)
    texts = [str(each.message) for each in warned if "space" in str(each.message)]
    assert len(texts) == 2  # one of all states, one of the finished fit
    assert "on-features.safetensors could not be written" in texts[0] and "Make room" in texts[0]
    assert state.read_bytes() == before and not list((tmp_path / "run").glob(".partial*"))
    full[0], steps.number = False, 0
    same(fit(tmp_path / "run"), whole)
    assert steps.number == 5


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_identity", fails)
    with pytest.raises(
        OSError, match=r"expected a folder that can be written, got .*run.*No space left.*make room"
    ):
        fit(tmp_path / "run")
    assert not steps.number


@pytest.mark.parametrize("damage", ["cut", "altered", "another fit"])
def test_a_damaged_state_is_refused_with_the_remedy(tmp_path: Path, steps: Steps, damage: str) -> None:
    killed(steps, 4, tmp_path / "run")
    state = tmp_path / "run" / "on-features.safetensors"
    content = state.read_bytes()
    if damage == "cut":
        state.write_bytes(content[:-100])
    elif damage == "altered":
        state.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        killed(steps, 4, tmp_path / "other", seed=1)
        state.write_bytes((tmp_path / "other" / state.name).read_bytes())
    with pytest.raises(
        ValueError, match=r"checkpoint: expected .*on-features.*; delete the file to do that part again, or"
    ):
        fit(tmp_path / "run")
    state.unlink()
    same(fit(tmp_path / "run"), fit())


def test_a_damaged_record_and_a_damaged_end_are_refused_with_the_remedy(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    posterior = next((tmp_path / "run" / "fit").glob("posterior-*"))
    posterior.write_bytes(posterior.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"the file was cut or altered.*; or delete .*run to begin anew"):
        fit(tmp_path / "run")
    record = tmp_path / "run" / "checkpoint.json"
    body = json.loads(record.read_text())
    for text in (record.read_text()[:-20], json.dumps(body | {"identity": {}}), "[]"):
        record.write_text(text)
        with pytest.raises(
            ValueError,
            match=r"expected the checkpoint.json that was written.*delete the folder to begin anew",
        ):
            fit(tmp_path / "run")
    record.write_text(json.dumps(body | {"version": 2}))
    with pytest.raises(ValueError, match="expected format version 1, got 2"):
        fit(tmp_path / "run")


def test_a_kill_while_the_finished_fit_is_written_costs_that_alone(tmp_path: Path, steps: Steps) -> None:
    whole = fit()
    killed(steps, 8, tmp_path / "run")
    left = tmp_path / "run" / "fit" / ".partial-1"
    left.mkdir(parents=True)
    (left / "posterior").write_text("cut")
    same(fit(tmp_path / "run"), whole)
    assert steps.number == 1 and not left.exists()


def test_a_fit_inside_of_one_that_keeps_its_state_keeps_nothing(tmp_path: Path) -> None:
    with checkpoints.opened(tmp_path / "run") as keeper:
        keeper.belongs_to({"fit": 1})
        fit()
        assert checkpoints.current() is keeper
    assert checkpoints.current() is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.json"]
