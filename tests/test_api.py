"""The Python door: parts by name or by their fields, and what is not a setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import polyactor as pa
from polyactor import nursery, training
from polyactor.config import Config
from polyactor.optim.rules import Adam
from polyactor.schemes import ActorLearner, Hogwild


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configs of runs that would have been trained."""
    configs: list[Config] = []
    monkeypatch.setattr(training, "train", lambda config, reasons: configs.append(config))
    monkeypatch.setattr(nursery, "open_nursery", lambda: None)
    return configs


def test_parts_are_named_or_changed_or_both(asked: list[Config]) -> None:
    pa.train("a3c", env="CartPole-v1")
    pa.train("a3c", env="CartPole-v1", scheme={"lock": "both"}, optimizer={"lr": 0.5})
    pa.train("impala", env="CartPole-v1", scheme={"name": "actor-learner", "max_lag": 3}, optimizer="adam")
    pa.train("a3c", env="CartPole-v1", optimizer={"name": "adam", "lr": 0.25}, algorithm={"gamma": 0.5})
    plain, changed, learner, adam = asked
    assert changed.scheme == Hogwild(lock="both")
    assert type(changed.optimizer) is type(plain.optimizer)
    assert changed.optimizer.lr == 0.5
    assert learner.scheme == ActorLearner(max_lag=3)
    assert isinstance(adam.optimizer, Adam)
    assert (adam.optimizer.lr, adam.algorithm.gamma) == (0.25, 0.5)


def test_a_directory_may_be_a_path(asked: list[Config]) -> None:
    pa.train("a3c", env="CartPole-v1", out=Path("runs") / "one")
    assert asked[0].out == "runs/one"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheme": {"locks": "both"}}, "there is no setting scheme.locks (did you mean 'lock'?)"),
        ({"optimizer": {"name": "adam", "lrs": 1}}, "there is no setting optimizer.lrs"),
        ({"optimizer": {"name": "adan"}}, "--optimizer adan does not exist"),
        ({"worker": 3}, "there is no setting worker (did you mean 'workers'?)"),
    ],
)
def test_what_is_no_setting_is_named(values: dict[str, Any], words: str, asked: list[Config]) -> None:
    with pytest.raises(pa.PolyactorError) as caught:
        pa.train("a3c", env="CartPole-v1", **values)
    assert words in str(caught.value)
    assert not asked
