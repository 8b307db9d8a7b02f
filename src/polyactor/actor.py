"""Acting: step the environments with the policy and hand out rollouts. Never learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from polyactor.board import Part, Watch, unwatched
from polyactor.envs import EnvSpec
from polyactor.failpoints import hit
from polyactor.models.normalizer import blank_moments, moments
from polyactor.pulse import ALL, Line, Pulse
from polyactor.types import Moments, Rollout

if TYPE_CHECKING:
    from polyactor.envs import Step, VectorEnv
    from polyactor.models.actor_critic import ActorCritic

KEPT = ("observation", "is_first", "ended", "score", "steps")
"""What an actor keeps of each environment between two rollouts."""


def blank(t: int, spec: EnvSpec, model: ActorCritic, b: int, actors: int = 1, *, behavior: bool = False) -> Rollout:
    """Memory for T steps of B environments of this kind, by so many actors; with all of μ or log μ(a) alone."""
    actions = model.actions
    observation = torch.from_numpy(spec.observation_space.low[:0])
    return Rollout(
        observation=torch.zeros((t + 1, b, *spec.observation_space.shape), dtype=observation.dtype),
        is_first=torch.zeros(t + 1, b, dtype=torch.bool),
        action=torch.zeros((t, b, *actions.shape), dtype=torch.float32 if actions.dims else torch.int64),
        reward=torch.zeros(t, b),
        terminated=torch.zeros(t, b, dtype=torch.bool),
        behavior_log_prob=torch.zeros(t, b),
        core_state=tuple(torch.zeros(b, *part.shape[1:]) for part in model.initial_state(1)),
        version=torch.zeros(b, dtype=torch.int64),
        behavior_params=torch.zeros(t, b, actions.params) if behavior else None,
        moments={name: blank_moments(actors, tuple(part.mean.shape)) for name, part in model.running.items()},
    )


def unheard(why: str) -> None:
    """Nobody wants to know."""


class Actor:
    """Owns a vector environment, a recurrent state and its random stream; reads a model it does not change.

    Args:
        envs: B environments in NEXT_STEP mode.
        model: acts; whoever owns it may change its parameters between two calls of `collect`.
        length: T, steps per rollout.
        generator: samples the actions.
        gamma: discount of the return whose moments scale rewards, where the model keeps them.
        differentiated: its rollouts are differentiated with the model as it is, so all that acting computes is kept.
        behavior: its rollouts carry the parameters of the policy that acted.
        line: where it notes that the environments have been asked, and have answered.
        on_game: called with score and length (agent steps) of every finished game.
        on_lost: called with a sentence for every failure of an environment, which cost its game.
        spend: called with the seconds each part of collecting took.
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
        differentiated: bool = False,
        behavior: bool = False,
        line: Line | None = None,
        on_game: Callable[[float, int], None],
        on_lost: Callable[[str], None] = unheard,
        spend: Callable[[Part, float], None] = unwatched,
    ) -> None:
        self.envs, self.model, self.generator, self.gamma = envs, model, generator, gamma
        self.on_game, self.on_lost, self.spend = on_game, on_lost, spend
        self.line = line or Pulse(1).line(0)
        b = envs.num_envs
        self.length, self.differentiated, self.behavior = length, differentiated, behavior
        self.own: Rollout | None = None
        self.line.asked(ALL, None)
        self.observation = envs.reset(seed)
        self.line.answered()
        self.is_first, self.ended = np.ones(b, dtype=bool), np.zeros(b, dtype=bool)
        self.state = model.initial_state(b)
        self.score, self.steps = np.zeros(b), np.zeros(b, dtype=np.int64)
        self.discounted_return = torch.zeros(b)

    def collect(self, version: int, into: Rollout | None = None) -> Rollout:
        """T steps with π(·; θ'), where θ' is the model's version now.

        Args:
            version: of the model's parameters.
            into: memory to write to; by default the actor's own, which holds until the next `collect`.
        """
        if into is None:
            if self.own is None:
                shape, b = self.envs.observation_space.shape, self.envs.num_envs
                memo = self.model.blank_memo(shape, self.length * b, differentiated=self.differentiated)
                spec = EnvSpec.of(self.envs)
                self.own = blank(self.length, spec, self.model, b, behavior=self.behavior).replace(memo=memo)
            into = self.own
        hit("rollout")
        with torch.inference_mode():
            self._collect(into)
        into.version.fill_(version)
        return into

    def _collect(self, x: Rollout) -> None:
        watch = Watch(self.spend)
        # Written through NumPy: a row of a tensor costs more to assign than these small rows to copy.
        observation, is_first, action, reward, terminated = (
            each.numpy() for each in (x.observation, x.is_first, x.action, x.reward, x.terminated)
        )
        observation[0], is_first[0] = self.observation, self.is_first
        for own, part in zip(x.core_state, self.state, strict=True):
            own.copy_(part)
        b, params = self.envs.num_envs, []
        for t in range(len(reward)):
            memo = None if x.memo is None else x.memo[t * b : (t + 1) * b]
            params_t, self.state = self.model.step(x.observation[t], self.state, x.is_first[t], memo)
            params.append(params_t)
            a_t = self.model.distribution(params_t).sample(self.generator).numpy()
            watch.lap(Part.INFER)
            self.line.asked(ALL, a_t)
            step = self.envs.step(a_t)
            self.line.answered()
            watch.lap(Part.EMULATE)
            action[t], reward[t], terminated[t] = a_t, step.reward, step.terminated
            # The row after `done` holds the final observation; the row after that starts the next episode. A lost game
            # is one that was truncated before: x_t is its final observation, and row t the fake step.
            observation[t + 1], is_first[t + 1] = step.observation, self.ended | step.lost
            self._count(step)
            self.ended = step.done.copy()
            watch.lap(Part.STORE)
        behavior = torch.stack(params)
        x.behavior_log_prob.copy_(self.model.distribution(behavior).log_prob(x.action))
        if x.behavior_params is not None:
            x.behavior_params.copy_(behavior)
        self.observation, self.is_first = observation[-1].copy(), is_first[-1].copy()
        for name, new in self._moments(x).items():
            x.moments[name].copy_(new)
        watch.lap(Part.STORE)

    def close(self) -> None:
        """Close the environments; what they have to say against it changes nothing any more."""
        self.line.asked(ALL, None)
        with suppress(Exception):
            self.envs.close()
        self.line.answered()

    def snapshot(self) -> dict[str, Tensor]:
        """Everything that `collect` goes on from, but the model's parameters."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in KEPT}
        state = {f"state_{i}": part for i, part in enumerate(self.state)}
        return arrays | state | {
            "discounted_return": self.discounted_return,
            "generator": self.generator.get_state(),
            "envs": torch.frombuffer(bytearray(self.envs.snapshot()), dtype=torch.uint8),
        }  # fmt: skip

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on, to the bit, as the actor that `snapshot` was taken of."""
        for name in KEPT:
            setattr(self, name, saved[name].numpy())
        self.state = tuple(saved[f"state_{i}"] for i in range(len(self.state)))
        self.discounted_return = saved["discounted_return"]
        self.generator.set_state(saved["generator"])
        self.envs.restore(saved["envs"].numpy().tobytes())

    def _count(self, step: Step) -> None:
        """Scores are the environment's own: whole games, unclipped; fake steps and lost games count nothing."""
        self.score += step.reward
        self.steps += ~self.ended
        for i in np.flatnonzero(step.done):
            self.on_game(float(self.score[i]), int(self.steps[i]))
            self.score[i], self.steps[i] = 0.0, 0
        if step.why:
            self.score[step.lost], self.steps[step.lost] = 0.0, 0
            for sentence in step.why:
                self.on_lost(sentence)

    def _moments(self, x: Rollout) -> dict[str, Moments]:
        """What this rollout adds to the model's running statistics."""
        new: dict[str, Moments] = {}
        if self.model.observation_moments is not None:
            if self.model.image:  # one frame in T is sample enough, and T times cheaper
                new["observation_moments"] = moments(x.observation[-1])
            else:
                new["observation_moments"] = moments(x.observation[1:].flatten(0, 1))
        if self.model.return_moments is not None:
            mask = ~x.is_first[1:]
            returns = torch.zeros_like(x.reward)
            for t, reward in enumerate(x.reward):
                self.discounted_return = reward + self.gamma * self.discounted_return * mask[t]
                returns[t] = self.discounted_return
                self.discounted_return = self.discounted_return * ~x.terminated[t]
            new["return_moments"] = moments(returns.flatten(), mask.flatten())
        return new
