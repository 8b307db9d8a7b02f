"""Acting: step the environments with the policy and hand out rollouts. Never learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from polyactor.models.normalizer import moments
from polyactor.types import Moments, Rollout

if TYPE_CHECKING:
    from polyactor.envs import VectorEnv
    from polyactor.models.actor_critic import ActorCritic


class Actor:
    """Owns a vector environment, a recurrent state and its random stream; reads a model it does not change.

    Args:
        envs: B environments in NEXT_STEP mode.
        model: acts; whoever owns it may change its parameters between two calls of `collect`.
        length: T, steps per rollout.
        generator: samples the actions.
        gamma: discount of the return whose moments scale rewards, where the model keeps them.
        on_game: called with score and length (agent steps) of every finished game.

    The tensors of a rollout are reused: they hold until the next `collect`.
    """

    def __init__(
        self,
        envs: VectorEnv,
        model: ActorCritic,
        *,
        length: int,
        seed: int,
        generator: torch.Generator,
        gamma: float,
        on_game: Callable[[float, int], None],
    ) -> None:
        self.envs, self.model, self.generator, self.gamma, self.on_game = envs, model, generator, gamma, on_game
        t, b = length, envs.num_envs
        first = torch.from_numpy(envs.reset(seed))
        self.observation = torch.zeros((t + 1, *first.shape), dtype=first.dtype)
        self.is_first = torch.zeros(t + 1, b, dtype=torch.bool)
        self.reward = torch.zeros(t, b)
        self.terminated = torch.zeros(t, b, dtype=torch.bool)
        self.log_prob = torch.zeros(t, b)
        actions = model.actions
        self.action = torch.zeros((t, b, *actions.shape), dtype=torch.float32 if actions.dims else torch.int64)
        self.observation[t] = first
        self.is_first[t] = True
        self.ended = torch.zeros(b, dtype=torch.bool)
        self.state = model.initial_state(b)
        self.score, self.steps = np.zeros(b), np.zeros(b, dtype=np.int64)
        self.discounted_return = torch.zeros(b)

    @torch.inference_mode()
    def collect(self, version: int) -> Rollout:
        """T steps with π(·; θ'), where θ' is the model's version now."""
        length = len(self.reward)
        self.observation[0] = self.observation[length]
        self.is_first[0] = self.is_first[length]
        start = tuple(part.clone() for part in self.state)
        for t in range(length):
            params, self.state = self.model.step(self.observation[t], self.state, self.is_first[t])
            pi_t = self.model.distribution(params)
            a_t = pi_t.sample(self.generator)
            observation, reward, terminated, done = self.envs.step(a_t.numpy())
            self.action[t] = a_t
            self.log_prob[t] = pi_t.log_prob(a_t)
            self.reward[t] = torch.from_numpy(reward)
            self.terminated[t] = torch.from_numpy(terminated)
            self.observation[t + 1] = torch.from_numpy(observation)
            # The row after `done` holds the final observation; the row after that starts the next episode.
            self.is_first[t + 1] = self.ended
            self._count(reward, done)
            self.ended = torch.from_numpy(done.copy())
        with torch.inference_mode(False):  # tensors made in inference mode could not be saved for backward
            core_state = tuple(part.clone() for part in start)
        mask = ~self.is_first[1:]
        return Rollout(
            observation=self.observation,
            is_first=self.is_first,
            action=self.action,
            reward=self.reward,
            terminated=self.terminated,
            behavior_log_prob=self.log_prob,
            core_state=core_state,
            version=torch.full((self.envs.num_envs,), version),
            moments=self._moments(mask),
        )

    def _count(self, reward: np.ndarray, done: np.ndarray) -> None:
        """Scores are the environment's own: whole games, unclipped; a fake step counts nothing."""
        self.score += reward
        self.steps += ~self.ended.numpy()
        for i in np.flatnonzero(done):
            self.on_game(float(self.score[i]), int(self.steps[i]))
            self.score[i], self.steps[i] = 0.0, 0

    def _moments(self, mask: torch.Tensor) -> dict[str, Moments]:
        """What this rollout adds to the model's running statistics."""
        new: dict[str, Moments] = {}
        if self.model.observation_moments is not None:
            if self.model.image:  # one frame in T is sample enough, and T times cheaper
                new["observation_moments"] = moments(self.observation[-1])
            else:
                new["observation_moments"] = moments(self.observation[1:].flatten(0, 1))
        if self.model.return_moments is not None:
            returns = torch.zeros_like(self.reward)
            for t, reward in enumerate(self.reward):
                self.discounted_return = reward + self.gamma * self.discounted_return * mask[t]
                returns[t] = self.discounted_return
                self.discounted_return = self.discounted_return * ~self.terminated[t]
            new["return_moments"] = moments(returns.flatten(), mask.flatten())
        return new
