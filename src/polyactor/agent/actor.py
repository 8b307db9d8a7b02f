"""Acting: an `Actor` steps environments with a policy and returns rollouts. It never changes the parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyactor.agent.rollout_row import row_of
from polyactor.data import Moments, Rollout, at, leaves
from polyactor.envs.spec import EnvSpec
from polyactor.models.running_stats import moments
from polyactor.shared.heartbeat import ALL, Call, Heartbeat, Heartbeats
from polyactor.shared.timing import Part, Watch, unwatched
from polyactor.system.failpoints import hit

if TYPE_CHECKING:
    from polyactor.envs import Step, VectorEnv
    from polyactor.models.actor_critic import ActorCritic

KEPT = ("is_first", "ended", "score", "steps")
"""Attributes of an actor, each an array over environments, that carry over from one rollout to the next."""


def unheard(why: str) -> None:
    """Ignore the failure of an environment: the default of `Actor.on_lost`."""


class Actor:
    """Collects rollouts; owns the environments, the recurrent state and the random stream that samples actions.

    Args:
        envs: B environments that reset themselves in Gymnasium's NEXT_STEP mode.
        model: gives the policy; its parameters may be replaced between two calls of `collect`.
        length: T, steps per rollout.
        seed: seeds the first reset of the environments.
        generator: the random stream that samples actions.
        gamma: discount of the return whose running moments scale rewards, if the model has such moments.
        differentiated: whether a rollout is learned from at the parameters that acted; the memo then keeps the
            outputs of all layers for the backward pass.
        needs: names of the optional fields that the rollouts have.
        heartbeat: records when the environments were asked for a step and when they answered.
        on_game: called with the score and the length (agent steps) of every finished game.
        on_lost: called with a sentence about every environment that failed; the game it played does not count.
        spend: called with a part of the work (emulation, inference, storage) and the seconds it took.
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
        needs: Collection[str] = (),
        heartbeat: Heartbeat | None = None,
        on_game: Callable[[float, int], None],
        on_lost: Callable[[str], None] = unheard,
        spend: Callable[[Part, float], None] = unwatched,
    ) -> None:
        self.envs, self.model, self.generator, self.gamma = envs, model, generator, gamma
        self.on_game, self.on_lost, self.spend = on_game, on_lost, spend
        self.heartbeat = heartbeat or Heartbeats(1).heartbeat(0)
        b = envs.num_envs
        self.length, self.differentiated, self.needs = length, differentiated, needs
        self.own: Rollout | None = None
        self.heartbeat.asked(ALL, None)
        self.observation, self.action_mask = envs.reset(seed), envs.action_mask
        self.heartbeat.answered()
        self.is_first, self.ended = np.ones(b, dtype=bool), np.zeros(b, dtype=bool)
        self.state = model.initial_state(b)
        self.score, self.steps = np.zeros(b), np.zeros(b, dtype=np.int64)
        self.discounted_return = torch.zeros(b)

    def collect(self, version: int, into: Rollout | None = None) -> Rollout:
        """Act for T steps with π(·; θ') and return them as a rollout of ``[T, B]`` rows.

        Args:
            version: the version of θ', the model's parameters.
            into: the memory to write to; by default memory of the actor, which the next call overwrites.
        """
        if into is None:
            if self.own is None:
                self.own = self._memory()
            into = self.own.replace(memo=self.own.memo and replace(self.own.memo, pull=self.model.pull))
        hit("rollout")
        with torch.inference_mode():
            self._collect(into)
        into.version.fill_(version)
        return into

    def _memory(self) -> Rollout:
        """Allocate a rollout for this actor, with a memo if the model has a CNN."""
        row, b = row_of(EnvSpec.of(self.envs), self.model, self.needs), self.envs.num_envs
        memo = self.model.blank_memo(self.length * b, differentiated=self.differentiated)
        rollout, noise = Rollout.blank(row, t=self.length, b=b), self.model.noise
        return rollout.replace(memo=memo and replace(memo, noise=None if noise is None else noise.of(rollout)))

    def _collect(self, x: Rollout) -> None:
        watch = Watch(self.spend)
        # Through NumPy: to assign such a small row to a tensor costs more than the copy itself.
        is_first, action, reward, terminated = (each.numpy() for each in (x.is_first, x.action, x.reward, x.terminated))
        entries = [each.numpy() for each in leaves(x.observation)]
        legal = None if x.action_mask is None else x.action_mask.numpy()
        self._put(entries, legal, 0)
        is_first[0] = self.is_first
        for own, part in zip(x.core_state, self.state, strict=True):
            own.copy_(part)
        b, params = self.envs.num_envs, []
        noise = None if self.model.noise is None else self.model.noise.draw(x, self.generator)
        for t in range(len(reward)):
            memo = None if x.memo is None else x.memo[t * b : (t + 1) * b]
            mask_t = None if x.action_mask is None else x.action_mask[t]
            params_t, self.state = self.model.step(at(x.observation, t), self.state, x.is_first[t], memo, mask_t, noise)
            params.append(params_t)
            drawn_t = self.model.distribution(params_t).sample(self.generator)
            a_t = self.model.actions.sent(drawn_t).numpy()
            watch.lap(Part.INFER)
            self.heartbeat.asked(ALL, a_t)
            step = self.envs.step(a_t)
            self.heartbeat.answered()
            watch.lap(Part.EMULATE)
            action[t], reward[t], terminated[t] = drawn_t.numpy(), step.reward, step.terminated
            # The row after `done` holds the final observation; the row after that starts the next episode. The game of
            # a failed environment counts as truncated before row t: x_t is its final observation, row t is fake.
            self.observation, self.action_mask = step.observation, self.envs.action_mask
            self._put(entries, legal, t + 1)
            is_first[t + 1] = self.ended | step.lost
            self._count(step)
            self.ended = step.done.copy()
            watch.lap(Part.STORE)
        behavior = torch.stack(params)
        x.behavior_log_prob.copy_(self.model.distribution(behavior).log_prob(x.action))
        if x.behavior_params is not None:
            x.behavior_params.copy_(behavior)
        self.is_first = is_first[-1].copy()
        for name, new in self._moments(x).items():
            x.moments[name].copy_(new)
        watch.lap(Part.STORE)

    def _put(self, entries: list[NDArray[Any]], legal: NDArray[np.bool_] | None, t: int) -> None:
        """Write the latest observation and action mask to row t of a rollout."""
        seen = self.observation
        for place, rows in zip(entries, seen.values() if isinstance(seen, dict) else (seen,), strict=True):
            place[t] = rows
        if legal is not None:
            legal[t] = self.action_mask

    def close(self) -> None:
        """Close the environments and ignore any error they raise."""
        self.heartbeat.asked(ALL, None, Call.CLOSE)
        with suppress(Exception):
            self.envs.close()
        self.heartbeat.answered()

    def snapshot(self) -> dict[str, Tensor]:
        """Return everything that decides the next rollout except the model's parameters."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in KEPT}
        arrays |= {name: rows.contiguous() for name, rows in self._seen()}
        state = {f"state_{i}": part for i, part in enumerate(self.state)}
        return arrays | state | {
            "discounted_return": self.discounted_return,
            "generator": self.generator.get_state(),
            "envs": torch.frombuffer(bytearray(self.envs.snapshot()), dtype=torch.uint8),
        }  # fmt: skip

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Restore a `snapshot`: the rollouts that follow are bit-identical to those of the actor it was taken of."""
        for name in KEPT:
            setattr(self, name, saved[name].numpy())
        for name, own in self._seen():
            own.copy_(saved[name])
        self.state = tuple(saved[f"state_{i}"] for i in range(len(self.state)))
        self.discounted_return = saved["discounted_return"]
        self.generator.set_state(saved["generator"])
        self.envs.restore(saved["envs"].numpy().tobytes())

    def _seen(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the arrays of the latest observation and action mask as tensors, each with its name."""
        if isinstance(self.observation, dict):
            for i, rows in enumerate(self.observation.values()):
                yield f"observation_{i}", torch.from_numpy(rows)
        else:
            yield "observation", torch.from_numpy(self.observation)
        if self.action_mask is not None:
            yield "action_mask", torch.from_numpy(self.action_mask)

    def _count(self, step: Step) -> None:
        """Add a step to the score of each game and report finished games and failed environments.

        Scores are sums of unclipped rewards over whole games. Fake rows and games of failed environments do not count.
        """
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
        """Return the moments of this rollout's observations and returns, for the model's running statistics."""
        new: dict[str, Moments] = {}
        for entry, (name, _) in self.model.statistics.items():
            rows = x.observation[entry] if self.model.several else x.observation
            # Of images one of T rows is enough, and T times cheaper.
            new[name] = moments(rows[-1] if self.model.scalings[entry].image else rows[1:].flatten(0, 1))
        if self.model.return_moments is not None:
            mask = ~x.is_first[1:]
            returns = torch.zeros_like(x.reward)
            for t, reward in enumerate(x.reward):
                self.discounted_return = reward + self.gamma * self.discounted_return * mask[t]
                returns[t] = self.discounted_return
                self.discounted_return = self.discounted_return * ~x.terminated[t]
            new["return_moments"] = moments(returns.flatten(), mask.flatten())
        return new
