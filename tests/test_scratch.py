"""Memory that is used again: one piece for each thread, which nobody else sees."""

import threading

import torch

from bll_pyro.scratch import MAX_NUMBERS, scratch


def test_it_is_used_again_and_grows() -> None:
    like = torch.empty(0)
    first = scratch((10, 20), like)
    assert first.shape == (10, 20) and first.dtype == torch.float32
    assert scratch((5, 3), like).data_ptr() == first.data_ptr()
    assert scratch((5, 3), like.double()).dtype == torch.float64
    larger = scratch((40, 100), like)
    assert larger.shape == (40, 100) and larger.is_contiguous()
    assert scratch((40, 100), like).data_ptr() == larger.data_ptr()


def test_what_is_larger_than_it_keeps_is_the_callers_own() -> None:
    like = torch.empty(0)
    shape = (2, MAX_NUMBERS)
    assert scratch(shape, like).data_ptr() != scratch((2,), like).data_ptr()


def test_threads_do_not_share() -> None:
    like, places = torch.empty(0), [scratch((8,), torch.empty(0)).data_ptr()]
    kept: list[torch.Tensor] = []

    def ask() -> None:
        kept.append(scratch((8,), like))

    worker = threading.Thread(target=ask)
    worker.start()
    worker.join()
    assert kept[0].data_ptr() not in places
