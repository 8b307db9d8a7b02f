"""θ is published once per version, and a worker that has it is not given it again."""

from __future__ import annotations

import pytest
import torch

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'polyactor[ray]'")

from polyactor.data.wire import Arrays, Wire, decode  # noqa: E402
from polyactor.optim.flat import Layout, State  # noqa: E402
from polyactor.shared.counters import Counter, SharedCounters  # noqa: E402
from polyactor.shared.locks import SequenceLock  # noqa: E402
from polyactor.transport.ray.letters import BY_VALUE, Publisher, differing, own_versions  # noqa: E402


def publisher_of(size: int, wire: Wire = "fp32") -> Publisher:
    state = State(Layout((), size - 1, size), torch.zeros(size))
    return Publisher(state, SharedCounters(2), SequenceLock(), wire)


def numbers(arrays: Arrays) -> list[float]:
    """θ and the running statistics that have been published."""
    return [x for name in ("theta", "statistics") for x in arrays[name].tolist()]


def test_a_worker_is_given_what_it_lacks() -> None:
    publisher = publisher_of(4)
    order, vector = publisher.order(1, known=-1)
    assert (order.version, order.starts, numbers(vector)) == (0, 0, [0.0] * 4)
    assert publisher.order(1, known=0) == (order, None)
    publisher.state.vector.fill_(2.0)
    publisher.counters.count(0, Counter.UPDATES, 1)
    publisher.counters.count(1, Counter.STARTS, 3)
    order, vector = publisher.order(1, known=0)
    assert (order.version, order.starts, numbers(vector)) == (1, 3, [2.0] * 4)


def test_a_version_is_copied_once_and_is_no_view_of_the_state() -> None:
    publisher = publisher_of(4)
    _, first = publisher.order(0, known=-1)
    _, second = publisher.order(1, known=-1)
    assert first is second
    publisher.state.vector.fill_(2.0)
    assert numbers(first) == [0.0] * 4


@pytest.mark.usefixtures("cluster")
def test_a_large_one_is_one_object_of_the_cluster() -> None:
    publisher = publisher_of(BY_VALUE)
    _, first = publisher.order(0, known=-1)
    _, second = publisher.order(1, known=-1)
    assert first == second
    assert isinstance(first, ray.ObjectRef)
    assert len(numbers(ray.get(first))) == BY_VALUE


def test_parameters_are_rounded_and_statistics_are_not() -> None:
    publisher = publisher_of(3, "bf16")
    publisher.state.vector.fill_(1 / 3)
    _, arrays = publisher.order(0, known=-1)
    there = torch.zeros(3)
    decode(arrays, publisher.state.layout.split(there))
    assert there.tolist() == [*torch.full((2,), 1 / 3).bfloat16().tolist(), *torch.full((1,), 1 / 3).tolist()]
    assert arrays["theta"].nbytes == 4


def test_other_versions_are_named() -> None:
    run = own_versions()
    assert differing(run, run) == ""
    assert differing(run | {"torch": "1.0"}, run) == f"torch 1.0 (the run has {run['torch']})"
