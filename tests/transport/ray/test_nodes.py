"""What `check` says of the nodes of a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

module = pytest.importorskip("polyactor.transport.ray.nodes", reason="ray is not installed")

from polyactor.data.wire import encode, size  # noqa: E402
from polyactor.envs import env_spec  # noqa: E402
from polyactor.settings.presets import base_config  # noqa: E402
from tests.helpers.fresh import fresh  # noqa: E402


def test_the_load_of_a_gradient_is_that_of_its_letter() -> None:
    config = base_config("a3c-server", env="CartPole-v1")
    load, state = module._load(config, env_spec(config.env)), fresh(config).state
    assert load.steps == config.rollout * config.envs
    assert load.down == size(encode(state.layout.split(state.vector)))
    assert 4 * state.layout.theta <= load.up < 4 * state.layout.theta + 10_000
    assert 0.0 < load.seconds < 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_nodes_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(base_config("a3c-server", env="CartPole-v1"), transport="ray")
    spec = env_spec(config.env)
    cluster, node = module.facts(config, spec).items()
    assert cluster == ("cluster", f"{module.ray.get_runtime_context().gcs_address}; tokens are asked for")
    assert node[0].startswith("node ")
    assert "steps/s on each" in node[1]
    assert "workers of param-server" in node[1]
    monkeypatch.setattr(module, "own_versions", lambda: {"torch": "1.0"})
    _, node = module.facts(config, spec).items()
    assert "unfit: it has torch" in node[1]
    assert "(the run has 1.0)" in node[1]
    monkeypatch.undo()
    _, node = module.facts(replace(config, env="no_such_module:make"), spec).items()
    assert node[1].startswith("cannot run polyactor: EnvironmentUnsupported: ")
