"""The network that a run would have is said in words."""

from __future__ import annotations

import pytest

from polyactor.envs import env_spec
from polyactor.report.network import network
from polyactor.settings.presets import base_config


@pytest.mark.parametrize(
    ("preset", "env", "torso", "policy"),
    [
        ("a3c", "CartPole-v1", "mlp, of 4,675 parameters in all", "Categorical of 2 numbers"),
        ("a3c", "Pendulum-v1", "mlp, of 4,547 parameters in all", "Gaussian of 2 numbers"),
        ("a3c", "polyactor/Catch-v0", "a3c-cnn, of ", "Categorical of 3 numbers"),
        ("tmaze-a3c-lstm", "polyactor/TMaze-v0", "mlp, lstm, of ", "Categorical of 3 numbers"),
    ],
)
def test_what_auto_comes_to(preset: str, env: str, torso: str, policy: str) -> None:
    found = network(base_config(preset, env=env), env_spec(env))
    assert found["torso"].startswith(torso)
    assert found["policy"] == policy
