"""Memory that is used again: one piece for each thread, which nobody else sees."""

import threading

import torch

from bll_pyro.gaussian.scratch import MAX_NUMBERS, scratch


def test_it_is_used_again_and_grows() -> None:
    like = torch.empty(0)
    first = scratch("a", (10, 20), like)
    assert first.shape == (10, 20) and first.dtype == torch.float32
    assert scratch("a", (5, 3), like).data_ptr() == first.data_ptr()
    assert scratch("a", (5, 3), like.double()).dtype == torch.float64
    larger = scratch("a", (40, 100), like)
    assert larger.shape == (40, 100) and larger.is_contiguous()
    assert scratch("a", (40, 100), like).data_ptr() == larger.data_ptr()


def test_every_name_has_its_own() -> None:
    like = torch.empty(0)
    first, second = scratch("a", (7,), like), scratch("b", (7,), like)
    assert first.data_ptr() != second.data_ptr()
    assert first.data_ptr() == scratch("a", (7,), like).data_ptr()


def test_a_program_that_is_exported_holds_none_of_it() -> None:
    class Double(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return torch.add(values, values, out=scratch("a", (2, 3), values))

    kept = scratch("a", (2, 3), torch.empty(0))
    with torch.no_grad():
        program = torch.export.export(Double(), (torch.ones(2, 3),), strict=False)
    kept.fill_(7.0)
    assert torch.equal(program.module()(torch.full((2, 3), 2.0)), torch.full((2, 3), 4.0))
    assert torch.equal(kept, torch.full((2, 3), 7.0))
    assert type(scratch("a", (2, 3), torch.empty(0))) is torch.Tensor


def test_what_was_first_asked_for_in_inference_mode_serves_outside_of_it() -> None:
    with torch.inference_mode():
        scratch("of inference", (3,), torch.empty(0)).fill_(1.0)
    assert scratch("of inference", (3,), torch.empty(0)).mul_(2.0).tolist() == [2.0, 2.0, 2.0]


def test_what_is_larger_than_it_keeps_is_the_callers_own() -> None:
    like = torch.empty(0)
    shape = (2, MAX_NUMBERS)
    assert scratch("a", shape, like).data_ptr() != scratch("a", (2,), like).data_ptr()


def test_threads_do_not_share() -> None:
    like, places = torch.empty(0), [scratch("a", (8,), torch.empty(0)).data_ptr()]
    kept: list[torch.Tensor] = []

    def ask() -> None:
        kept.append(scratch("a", (8,), like))

    worker = threading.Thread(target=ask)
    worker.start()
    worker.join()
    assert kept[0].data_ptr() not in places
