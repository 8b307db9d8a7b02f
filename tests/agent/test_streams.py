"""Random streams of a worker that comes back."""

from __future__ import annotations

import torch

from polyactor.agent.streams import Streams


def test_who_comes_back_has_streams_of_its_own() -> None:
    drawn = set()
    for again in range(3):
        streams = Streams.of(1, 0, 7, again=again)
        drawn.add((streams.env, int(torch.randint(2**40, (), generator=streams.act))))
    assert len({env for env, _ in drawn}) == len({act for _, act in drawn}) == 3
    assert Streams.of(1, 0, 7).env == Streams.of(1, 0, 7, again=0).env
