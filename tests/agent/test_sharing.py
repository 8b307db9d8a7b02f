"""What roles share lies where the transport says, and for as many workers as it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from polyactor.agent.parts import Parts
from polyactor.agent.sharing import Sharing
from polyactor.config import Config
from polyactor.envs import env_spec
from polyactor.schemes import ActorLearner, ParamServer
from polyactor.shared.exchange import Exchange
from polyactor.shared.slot_queue import WakeUp
from tests.helpers.servers import config_of

SCHEMES: dict[str, Any] = {"server": ParamServer(queue=2, accumulate=3), "learner": ActorLearner(max_lag=1, batch=2)}


def exchange_of(config: Config, **how: Any) -> Exchange:
    parts = Parts.of_worker(config, env_spec(config.env))
    with config.scheme.roles(parts, Sharing(parts, **how)) as roles:
        assert isinstance(roles.shared, Exchange)
        return roles.shared


def size(exchange: Exchange, worker: int) -> int:
    places = [exchange.places.place(worker, slot) for slot in range(exchange.slots.slots)]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for place in places
                for each in place.tensors()}.values())  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("across", [False, True])
def test_it_is_in_shared_memory_where_processes_share_it(name: str, across: bool) -> None:
    exchange = exchange_of(config_of(SCHEMES[name]), across=across)
    tensors = [*exchange.slots.tensors(), *exchange.lock.tensors(), *exchange.places.place(1, 1).tensors()]
    assert [tensor.is_shared() for tensor in tensors] == [across] * len(tensors)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", SCHEMES)
def test_one_worker_among_many_has_no_more_memory_than_among_few(name: str) -> None:
    config = config_of(SCHEMES[name], workers=2)
    few = exchange_of(config, only=1)
    many = exchange_of(replace(config, workers=64), only=60, wake_up=WakeUp())
    assert size(few, 1) == size(many, 60)
    assert len(set(many.slots.wake_ups)) == 1
