"""Batches come in order, one ahead, with the maker's errors; rows are gathered as plain indexing does."""

import threading
import time

import numpy as np
import pytest
import torch

from panda import frames_of
from prism_policy.data.robomimic import Episode
from prism_policy.data.windows import Windows, batch_indices, rows
from prism_policy.training.prefetch import Prefetcher, mapped, moved


def test_batches_come_in_order_from_another_thread() -> None:
    made = list(Prefetcher(lambda i: (i, threading.get_ident()), range(7)))
    assert [i for i, _ in made] == list(range(7))
    assert {thread for _, thread in made} != {threading.get_ident()}
    assert list(Prefetcher(lambda i: i, [])) == []
    assert list(Prefetcher(lambda i: i, [3])) == [3]


def test_one_batch_is_made_while_one_is_used_and_no_more() -> None:
    started: list[int] = []
    for item in Prefetcher(lambda i: started.append(i) or i, range(6)):
        while len(started) < min(item + 2, 6):  # the next one is made while this one is used
            time.sleep(0.001)
        time.sleep(0.05)
        assert started == list(range(min(item + 2, 6)))


def test_an_error_of_the_maker_reaches_the_consumer_where_its_batch_was_due() -> None:
    batches = iter(Prefetcher(lambda i: 6 / (2 - i), range(5)))
    assert [next(batches), next(batches)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_the_wait_for_a_slow_maker_is_measured_and_that_for_a_fast_one_is_none() -> None:
    slow = Prefetcher(lambda i: time.sleep(0.1), range(4))
    fast = Prefetcher(lambda i: None, range(4))
    for _ in slow:
        pass
    assert slow.waited_s >= 0.35
    for _ in fast:
        time.sleep(0.02)
    assert fast.waited_s < 0.02
    beside = Prefetcher(lambda i: time.sleep(0.1), range(4))
    for _ in beside:
        time.sleep(0.15)
    assert 0.05 <= beside.waited_s < 0.25  # the first one alone, which had begun a little before


def test_a_consumer_that_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    for item in Prefetcher(lambda i: i, range(100)):
        if item == 3:
            break
    time.sleep(0.1)
    assert threading.active_count() == before


def test_a_batch_keeps_its_structure_when_it_moves() -> None:
    batch = {"a": torch.arange(3), "b": {"c": torch.ones(2, 2)}}
    doubled = mapped(batch, lambda x: 2 * x)
    assert doubled["a"].tolist() == [0, 2, 4]
    assert doubled["b"]["c"].tolist() == [[2, 2], [2, 2]]
    assert moved(batch, torch.device("cpu"))["b"]["c"] is batch["b"]["c"]


@pytest.mark.parametrize("shape", [(9, 4, 5, 3), (9, 7), (9,), (9, 0)])
def test_rows_are_what_plain_indexing_gives(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    layouts = {"contiguous": values, "strided": values.repeat_interleave(2, 0)[::2]}
    if values.ndim > 1:
        layouts["transposed"] = values.transpose(0, -1).contiguous().transpose(0, -1)
    for name, layout in layouts.items():
        assert torch.equal(layout, values), name
        for indices in (torch.randint(0, 9, (5, 2), generator=generator), torch.zeros(0, 2, dtype=torch.long)):
            actual = rows(layout, indices)
            assert actual.dtype == values.dtype
            assert torch.equal(actual, values[indices]), name


def test_gathered_rows_are_a_copy() -> None:
    values = torch.zeros(3, 2)
    rows(values, torch.tensor([[0, 1]])).fill_(1)
    assert not values.any()


def test_windows_on_a_device_give_the_batches_of_those_on_the_disk(episodes: list[Episode]) -> None:
    windows = Windows(frames_of(episodes), 16, 2, 8)
    there = windows.to(torch.device("cpu"))
    batch, again = windows.batch(torch.tensor([2, 7])), there.batch(torch.tensor([2, 7]))
    for name in ("state", "actions", "mask"):
        assert torch.equal(batch[name], again[name])
    assert torch.equal(batch["images"]["agentview"], again["images"]["agentview"])
    assert len(there) == len(windows)
    assert windows.to(torch.device("meta")).device.type == "meta"
    assert windows.device.type == windows.frames.actions.device.type == "cpu"  # the original stays


@pytest.mark.parametrize(("n_windows", "batch_size"), [(10, 4), (3, 8), (7, 7), (1, 2)])
def test_batches_are_consecutive_cuts_of_one_permutation_an_epoch(n_windows: int, batch_size: int) -> None:
    epochs = [np.random.default_rng((5, epoch)).permutation(n_windows) for epoch in range(6 * batch_size)]
    stream = np.concatenate(epochs)
    for step in (0, 5, 1, 3, 0, 4):  # in any order, whatever is remembered of earlier calls
        expected = stream[step * batch_size : (step + 1) * batch_size]
        assert batch_indices(step, batch_size, n_windows, seed=5).tolist() == expected.tolist()


def test_what_is_done_to_a_batch_of_indices_does_not_reach_the_next_one() -> None:
    first = batch_indices(0, 4, 8, seed=0)
    expected = first.clone()
    first.fill_(0)
    assert torch.equal(batch_indices(0, 4, 8, seed=0), expected)
