"""Random streams of a worker that comes back."""

from __future__ import annotations

import threading

import torch
from torch import nn

from polyactor.agent.streams import Drawing, Streams


def test_who_comes_back_has_streams_of_its_own() -> None:
    drawn = set()
    for again in range(3):
        streams = Streams.of(1, 0, 7, again=again)
        drawn.add((streams.env, int(torch.randint(2**40, (), generator=streams.act))))
    assert len({env for env, _ in drawn}) == len({act for _, act in drawn}) == 3
    assert Streams.of(1, 0, 7).env == Streams.of(1, 0, 7, again=0).env


def parameters() -> list[torch.Tensor]:
    square = torch.empty(5, 5)
    nn.init.orthogonal_(square)
    layers = nn.Linear(7, 5), nn.Conv2d(3, 4, 3), nn.LSTM(5, 6)
    return [square, *(each.detach() for layer in layers for each in layer.parameters())]


def test_initial_parameters_are_those_of_the_seed_and_leave_the_global_stream_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = parameters()
    before = torch.get_rng_state()
    with Drawing(3):
        drawn = parameters()
    assert all(map(torch.equal, drawn, expected))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_threads_do_not_draw_from_one_stream() -> None:
    """Each waits inside its block until the other is in its own."""
    together, drawn = threading.Barrier(2), dict[int, list[torch.Tensor]]()

    def make(seed: int) -> None:
        with Drawing(seed):
            together.wait(10)
            first = parameters()
            together.wait(10)
            drawn[seed] = first + parameters()

    threads = [threading.Thread(target=make, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, found in drawn.items():
        with Drawing(seed):
            assert all(map(torch.equal, found, parameters() + parameters()))
