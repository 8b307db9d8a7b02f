"""The parts of a run that begins, for tests that place them themselves."""

from __future__ import annotations

from polyactor.agent.parts import Parts
from polyactor.config import Config
from polyactor.envs import env_spec


def fresh(config: Config) -> Parts:
    """Of the config's own environment."""
    return Parts.fresh(config, env_spec(config.env, atari=config.atari))
