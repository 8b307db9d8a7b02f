"""Settings that change on their way to the workers."""

from __future__ import annotations

import pytest

from polyactor.algorithms import A2C, ACER
from polyactor.errors import UsageError
from polyactor.optim import Adam
from polyactor.shared.changes import BEGUN, Changes


def test_a_section_has_the_changes_of_its_own_settings() -> None:
    changes, algorithm, rule = Changes(), A2C(entropy_coef=0.01), Adam(lr=1e-3)
    assert changes.into("algorithm", algorithm) is algorithm
    changes.put({"algorithm.entropy_coef": 0.1 + 0.2, "optimizer.max_grad_norm": None})
    changed = changes.into("algorithm", algorithm)
    assert changed == A2C(entropy_coef=0.1 + 0.2)  # to the bit
    assert changes.into("algorithm", changed) is changed
    assert changes.into("optimizer", rule) == Adam(lr=1e-3, max_grad_norm=None)


def test_whole_numbers_stay_whole() -> None:
    changes = Changes()
    changes.put({"algorithm.replay_window": 3, "algorithm.replay_batch": None})
    replayed = changes.into("algorithm", ACER())
    assert repr(replayed.replay_window) == "3"
    assert replayed.replay_batch is None


def test_a_reader_keeps_what_it_has_while_a_write_is_under_way() -> None:
    changes = Changes()
    changes.put({"optimizer.lr": 0.5})
    assert changes.made() == {"optimizer.lr": 0.5}
    changes.put({"optimizer.lr": 0.25})
    changes.tensor[BEGUN] += 1
    assert changes.made() == {"optimizer.lr": 0.5}
    changes.tensor[BEGUN] -= 1
    assert changes.made() == {"optimizer.lr": 0.25}


def test_a_shorter_text_leaves_nothing_of_a_longer_one() -> None:
    changes = Changes()
    changes.put({"algorithm.entropy_coef": 0.123456789, "optimizer.lr": 1.0})
    changes.put({"optimizer.lr": 1.0})
    assert changes.made() == {"optimizer.lr": 1.0}


def test_more_than_the_memory_holds_is_refused() -> None:
    changes = Changes()
    with pytest.raises(UsageError, match="1000 settings cannot be changed"):
        changes.put({f"algorithm.setting_{i:04}": 0.0 for i in range(1_000)})
    assert changes.made() == {}
