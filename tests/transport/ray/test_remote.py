"""A worker by itself, called as the run calls it, in this process."""

from __future__ import annotations

from pathlib import Path

import cloudpickle
import pytest
import torch

pytest.importorskip("ray", reason="ray is not installed: pip install 'polyactor[ray]'")

from polyactor.agent.parts import Parts
from polyactor.algorithms import A2C, ACER
from polyactor.config import Config
from polyactor.data.wire import Arrays, encode
from polyactor.shared.counters import Order
from polyactor.transport.last_words import LastWords
from polyactor.transport.ray.letters import Greeting, Letter, own_versions
from polyactor.transport.ray.remote import Remote
from tests.helpers.fresh import fresh
from tests.helpers.servers import SCHEMES, config_of

FIRST = Order(0, 0, 0, {})


def given(config: Config) -> tuple[Parts, bytes]:
    parts = fresh(config)
    return parts, cloudpickle.dumps((config, parts.spec, {}))


def test_another_version_on_its_node_is_named_before_anything_is_made() -> None:
    words = Remote(0).greet(own_versions() | {"polyactor": "0.0", "torch": "1.0"}, b"", FIRST)
    assert isinstance(words, LastWords)
    assert words.kind == "ClusterFailed"
    ours = own_versions()
    for name, other in (("torch", "1.0"), ("polyactor", "0.0")):
        assert f"{name} {ours[name]} (the run has {other})" in words.sentence


def test_a_module_that_its_node_lacks_is_named() -> None:
    pickled = b"cno_such_module\nThing\n."  # a reference to no_such_module.Thing
    words = Remote(0).greet(own_versions(), pickled, FIRST)
    assert isinstance(words, LastWords)
    assert words.kind == "ClusterFailed"
    assert "lacks a module" in words.sentence
    assert "no_such_module" in words.sentence


def test_a_worker_leaves_files_only_where_it_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is killed, and then only until its first turn has ended."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for algorithm, found in ((A2C(), 0), (ACER(replay_capacity=1_000), 1)):
        remote, threads = Remote(0), torch.get_num_threads()
        parts, pickled = given(config_of(SCHEMES["server"], algorithm=algorithm))
        assert isinstance(remote.greet(own_versions(), pickled, FIRST), Greeting)
        torch.set_num_threads(threads)
        assert len(list(tmp_path.iterdir())) == found
        assert isinstance(remote.turn(FIRST, 0, published(parts)), Letter)
        assert not list(tmp_path.iterdir())
        remote.close()


def published(parts: Parts) -> Arrays:
    return encode(parts.state.layout.split(parts.state.vector))


@pytest.mark.parametrize("name", ["server", "learner"])
def test_a_turn_fills_one_slot_and_none_before_the_worker_is_let_in(name: str) -> None:
    parts, pickled = given(config_of(SCHEMES[name]))
    remote = Remote(1)
    threads = torch.get_num_threads()
    assert isinstance(remote.greet(own_versions(), pickled, FIRST), Greeting)
    torch.set_num_threads(threads)
    away = remote.turn(FIRST, None, published(parts))
    assert isinstance(away, Letter)
    assert (away.arrays, away.done, away.left) == (None, False, False)
    for number in (3, 4):
        letter = remote.turn(FIRST, number, None)
        assert isinstance(letter, Letter)
        assert letter.arrays is not None
        assert letter.report.turns == 1
    remote.close()


def test_a_worker_under_a_server_leaves_when_all_steps_are_done() -> None:
    parts, pickled = given(config_of(SCHEMES["server"], steps=100))
    remote = Remote(0)
    threads = torch.get_num_threads()
    remote.greet(own_versions(), pickled, FIRST)
    torch.set_num_threads(threads)
    letter = remote.turn(Order(5, 100, 0, {}), 0, published(parts))
    assert isinstance(letter, Letter)
    assert (letter.arrays, letter.done, letter.left) == (None, True, True)
