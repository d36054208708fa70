"""Callbacks: who is told, in which order, what happens when one of them fails, and how one ends the training."""

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.likelihoods import Categorical, Gaussian
from bll_pyro.observation import Record, Run, call, stage, unobserved, watching
from bll_pyro.observation.watching import CURRENT
from bll_pyro.progress import DISPLAY

pytestmark = pytest.mark.filterwarnings("ignore:the ELBO was still rising", "ignore:.*steps are too few")

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(24, 3, generator=RANDOM)
NUMBERS = 5 * X[:, 0] + 3 + torch.randn(24, generator=RANDOM)
LINE = bll.LastLayer(Gaussian())
SHORT = bll.SVI(num_epochs=20, batch_size=24)


class Diary:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.runs: list[Run] = []

    def on_start(self, run: Run) -> None:
        self.runs.append(run)
        self.lines.append(f"start {run.name}")

    def on_step(self, record: Record) -> None:
        assert record.run is self.runs[-1]
        self.lines.append(f"{record.stage} {record.step}")

    def on_end(self, run: Run, error: BaseException | None) -> None:
        self.lines.append(f"end {run.name} {error!r}")


def test_a_call_is_one_run_with_its_stages() -> None:
    diary = Diary()
    with bll.observe(callbacks=[diary]):
        with call("outer", kind="a"):
            with stage("a", 2) as steps:
                steps.advance()
                with stage("b"), stage("c") as inner:
                    inner.advance(3)
                steps.advance()
            with stage("a", 1) as again:
                again.advance()
        with stage("alone") as steps:
            steps.advance()
    assert diary.lines == [
        *(
            "start outer",
            "a 1",
            "a/b/c 3",
            "a 2",
            "a 3",
            "end outer None",
            "start alone",
            "alone 1",
            "end alone None",
        ),
    ]
    assert diary.runs[0].details == {"kind": "a"}
    assert CURRENT.get() is None


def test_choose_is_one_run() -> None:
    """With the fits in it, which are not runs of their own."""
    diary = Diary()
    with bll.observe(callbacks=[diary]):
        bll.choose({"one": LINE, "two": LINE}, (X, NUMBERS), inference=bll.Exact())
    assert [line for line in diary.lines if line.startswith(("start", "end"))] == [
        "start choose",
        "end choose None",
    ]
    assert "choose/two/sums 24" in diary.lines


def test_fit_tells_what_it_was_asked_for() -> None:
    diary = Diary()
    bll.fit(LINE, (X, NUMBERS), inference=SHORT, seed=3, callbacks=[diary])
    (run,) = diary.runs
    assert run.name == "fit" and run.details == {"layer": LINE, "inference": SHORT, "seed": 3}


def test_blocks_add_their_callbacks() -> None:
    outer: list[str] = []
    inner: list[str] = []
    own: list[str] = []
    with bll.observe(callbacks=[lambda record: outer.append(record.stage)]):
        with bll.observe(callbacks=[lambda record: inner.append(record.stage)]):
            bll.fit(
                LINE, (X, NUMBERS), inference=bll.Exact(), callbacks=[lambda record: own.append(record.stage)]
            )
        bll.fit(LINE, (X, NUMBERS), inference=bll.Exact())
    bll.fit(LINE, (X, NUMBERS), inference=bll.Exact())
    assert (outer, inner, own) == (["sums", "sums"], ["sums"], ["sums"])


def test_threads_have_their_own() -> None:
    """Neither settings nor stages go over to another thread, and two at once do not mix."""
    seen: dict[str, list[str]] = {"a": [], "b": [], "none": []}
    both = threading.Barrier(2, timeout=60)

    def work(name: str) -> None:
        with bll.observe(callbacks=[lambda record: seen[name].append(record.stage)]), stage(name) as steps:
            both.wait()
            for _ in range(50):
                steps.advance()
            both.wait()

    def unwatched() -> None:
        with stage("none") as steps:
            assert not steps.observed

    with bll.observe(callbacks=[lambda record: seen["none"].append(record.stage)]):
        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        threads.append(threading.Thread(target=unwatched))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {"a": ["a"] * 50, "b": ["b"] * 50, "none": []}


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_an_error_of_a_callback_reaches_the_caller(error: BaseException) -> None:
    """All callbacks are told of the end, the network is as it was, and nothing is left."""
    diary, network = Diary(), nn.Sequential(nn.Linear(3, 4), nn.Dropout())
    network[1].eval()

    def fail(record: Record) -> None:
        if record.stage == "joint training" and record.step == 2:
            raise error

    svi = bll.SVI(backbone_learning_rate=1e-3, num_epochs=3)
    before = [module.training for module in network.modules()]
    with pytest.raises(type(error)) as raised:
        bll.fit(LINE, (X, NUMBERS), network, svi, calibration=(X, NUMBERS), callbacks=[diary, fail])
    assert raised.value is error
    assert diary.lines[-1] == f"end fit {error!r}" and diary.lines[-2] == "joint training 2"
    assert [module.training for module in network.modules()] == before
    assert CURRENT.get() is None and DISPLAY._live is None


def test_an_error_of_a_callback_is_not_taken_for_a_failed_fit() -> None:
    """``choose`` goes on where numbers break a fit, but not where a callback fails."""

    def fail(record: Record) -> None:
        raise ArithmeticError("of the callback")

    with pytest.raises(ArithmeticError, match="of the callback"), bll.observe(callbacks=[fail]):
        bll.choose({"one": LINE, "two": LINE}, (X, NUMBERS), inference=bll.Exact())


def test_every_callback_that_was_started_is_ended() -> None:
    class Broken:
        def on_start(self, run: Run) -> None:
            raise OSError("disk full")

    first, last = Diary(), Diary()
    with pytest.raises(OSError, match="disk full"):
        bll.fit(LINE, (X, NUMBERS), callbacks=[first, Broken(), last])
    assert (first.lines, last.lines) == (["start fit", "end fit OSError('disk full')"], [])


def test_an_error_of_the_call_is_told() -> None:
    diary = Diary()
    with pytest.raises(ValueError, match="at least"):
        bll.fit(LINE, (X[:0], NUMBERS[:0]), callbacks=[diary])
    assert diary.lines[-1].startswith("end fit ValueError")


def stop_at(stage_name: str, step: int) -> Any:
    def stop(record: Record) -> None:
        if record.stage == stage_name and record.step >= step:
            raise bll.StopTraining

    return stop


@pytest.mark.parametrize("is_joint", [False, True])
def test_a_callback_ends_training(is_joint: bool) -> None:
    """After the step, with the state that was reached; no warning, and the trace says it."""
    name = "joint training" if is_joint else "SVI"
    network = nn.Linear(3, 2) if is_joint else None
    svi = bll.SVI(
        num_epochs=20, batch_size=8, backbone_learning_rate=1e-3 if is_joint else None, final_stage=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = bll.fit(
            LINE, (X, NUMBERS), network, svi, calibration=(X, NUMBERS), callbacks=[stop_at(name, 7)]
        )
    assert len(fit.trace.elbo) == 7 and not fit.trace.converged
    assert f"a callback ended {name} after 7 steps" in fit.trace.notes
    assert torch.isfinite(fit.predict(X).mean).all()


def test_validation_loss_ends_training() -> None:
    """It is told at the end of a pass; the best state is kept."""

    def stop(record: Record) -> None:
        if "nll" in record.metrics and record.step >= 6:
            raise bll.StopTraining

    svi = bll.SVI(num_epochs=20, batch_size=8)
    fit = bll.fit(LINE, (X, NUMBERS), inference=svi, validation_data=(X, NUMBERS), callbacks=[stop])
    assert len(fit.trace.elbo) == 6 and len(fit.trace.validation) == 2


def test_the_ascent_ends_at_its_best() -> None:
    fit = bll.fit(LINE, (X, NUMBERS), callbacks=[stop_at("ascent", 3)])
    values = fit.trace.elbo
    assert len(values) == 4  # the last one is of the result
    assert float(values[-1]) == pytest.approx(float(values[:3].max()), abs=1e-3)
    assert "a callback ended the ascent after 3 evaluations" in fit.trace.notes


def test_other_stages_have_nothing_to_go_on_with() -> None:
    with pytest.raises(bll.StopTraining), bll.observe(callbacks=[stop_at("features", 1)]):
        bll.extract(nn.Linear(3, 2), (X, NUMBERS))


def test_what_callbacks_draw_and_call_changes_nothing() -> None:
    """Not even of training with dropout; and what they call is not told of."""
    layer, labels = bll.LastLayer(Categorical(num_classes=2)), (NUMBERS > 3).long()
    network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))
    svi = bll.SVI(backbone_learning_rate=1e-3, num_epochs=3, final_stage=False)
    finished = bll.fit(LINE, (X, NUMBERS), inference=bll.Exact())
    stages = set()

    def draw(record: Record) -> None:
        stages.add(record.stage)
        torch.randn(3)
        finished.predict(X)

    kept = (X, labels)
    plain = bll.fit(layer, (X, labels), network, svi, calibration=kept)
    watched = bll.fit(layer, (X, labels), network, svi, calibration=kept, callbacks=[draw])
    assert torch.equal(plain.trace.elbo, watched.trace.elbo)
    assert "joint training" in stages and "prediction" in stages  # that of the rows for the temperature
    assert not any("joint training/" in name for name in stages)


def test_numbers_of_a_device_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to ten times a second, with none lost; at the end all have been told."""
    transfers: list[int] = []
    read = watching.numbers

    def counted(many: Any) -> Any:
        transfers.append(len(many))
        return read(many)

    monkeypatch.setattr(watching, "is_far", lambda value: isinstance(value, torch.Tensor))
    monkeypatch.setattr(watching, "INTERVAL", 60.0)
    monkeypatch.setattr(watching, "numbers", counted)
    seen: list[float] = []
    with (
        bll.observe(callbacks=[lambda record: seen.append(record.metrics["elbo"])]),
        stage("SVI", 100) as steps,
    ):
        for value in torch.arange(100.0):
            steps.advance(elbo=value)
        assert seen == []
    assert seen == list(range(100)) and transfers == [100]


def test_steps_of_an_earlier_process_are_skipped() -> None:
    records: list[Record] = []
    with bll.observe(callbacks=[records.append]), stage("SVI", 10) as steps:
        steps.skip(6)
        steps.expect(8)
        steps.advance()
    (record,) = records
    assert (record.step, record.total) == (7, 8)


def test_nobody_is_told_of_what_is_unobserved() -> None:
    records: list[Record] = []
    with bll.observe(callbacks=[records.append]), unobserved(), stage("SVI") as steps:
        steps.advance()
        steps.expect(3)
        steps.skip(1)
    assert records == [] and not steps.observed


@pytest.mark.unchecked
@pytest.mark.parametrize("wrong", [3, "abc", bll.Record, [None], lambda record: None])
def test_what_is_no_list_of_callbacks_is_refused(wrong: Any) -> None:
    given = [wrong] if wrong is bll.Record else wrong
    with pytest.raises(TypeError, match="callbacks: expected"):
        bll.fit(LINE, (X, NUMBERS), callbacks=given)
    with pytest.raises(TypeError, match=r"progress=...\): expected True or False, got 'no'"):
        bll.fit(LINE, (X, NUMBERS), progress="no")  # type: ignore[arg-type]


def test_a_record_prints_in_one_line() -> None:
    record = Record(Run("fit"), "SVI", 3, 1500, {"elbo": -23.456789}, 0.1)
    assert str(record) == "SVI 3/1,500, elbo -23.46"
    assert str(Record(Run("fit"), "mode", 3, None, {}, 0.1)) == "mode 3"
