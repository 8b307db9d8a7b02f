"""Evaluation: whole games played with fixed parameters, and their scores."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyactor.agent.streams import EVALUATION_STREAM, GLOBAL_STREAM, Streams
from polyactor.config import Config
from polyactor.envs import EnvSpec, VectorEnv, make_envs
from polyactor.errors import EnvironmentUnsupported
from polyactor.evaluation.policy import make_trained
from polyactor.models.actor_critic import ActorCritic
from polyactor.shared.counters import SharedCounters, never, nothing
from polyactor.shared.heartbeat import ALL, Call
from polyactor.system.deadline import Halted
from polyactor.system.machine import torch_threads
from polyactor.system.notices import waiting
from polyactor.system.process_state import attention, kept_streams, kept_switches
from polyactor.transport.watchdog import Tell, untold, watched

MAX_GAME_STEPS = 27_000
"""Agent steps after which a game is cut: 108,000 emulator frames, half an hour of play."""
STUCK_AFTER = 2_000
"""Agent steps without reward or any change of the observation after which a game counts as stuck."""


@dataclass(frozen=True)
class Evaluation:
    """The result of whole games, scored with the environment's rewards, neither clipped nor scaled.

    Attributes:
        scores: the score of each game; every environment played the same number of games.
        lengths: the agent steps of each game.
        stuck: games cut because nothing changed any more, as with a greedy policy that never serves.
        capped: games cut at the step limit.
        deterministic: whether the policy took its most likely actions; otherwise it sampled.
        lost: games ended by a failure of their environment; others were played in their place.
    """

    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    stuck: int
    capped: int
    deterministic: bool
    lost: int = 0

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float:
        """Population standard deviation of the scores."""
        return statistics.pstdev(self.scores)

    def __str__(self) -> str:
        """Return the result in one line."""
        how = "greedy" if self.deterministic else "sampled"
        cut = f", {self.stuck} stuck" * bool(self.stuck) + f", {self.capped} cut at the step limit" * bool(self.capped)
        cut += f", {self.lost} lost to failures and played again" * bool(self.lost)
        spread = f"from {min(self.scores):g} to {max(self.scores):g}"
        return f"{how}: {self.mean:.2f} ± {self.std:.2f} over {len(self.scores)} games, {spread}{cut}"


@torch.inference_mode()
def play(
    model: ActorCritic,
    envs: VectorEnv,
    *,
    games: int,
    deterministic: bool,
    seed: int,
    max_game_steps: int = MAX_GAME_STEPS,
    stuck_after: int = STUCK_AFTER,
    stopped: Callable[[], bool] = never,
    answered: Callable[[], object] = nothing,
) -> Evaluation:
    """Play whole games, the same number in each environment, so that short games do not count more often.

    Args:
        model: acts, and is not changed.
        envs: B environments, reset with the seed.
        games: the least number of games; rounded up to a multiple of B.
        deterministic: take the most likely action; otherwise sample.
        seed: of the environments and of sampled actions.
        max_game_steps: agent steps after which a game is cut; its score so far counts.
        stuck_after: agent steps without reward or new observation after which a game is cut; its score counts.
        stopped: called after every step; returns True to end with the games finished so far.
        answered: called whenever the environments have returned from a reset or step.

    Raises:
        EnvironmentUnsupported: an environment failed again and again, or failures ended more than `games` games.
    """
    b, per_env = envs.num_envs, -(-games // envs.num_envs)
    streams = Streams.of(seed, EVALUATION_STREAM)
    observation, state = envs.reset(streams.env), model.initial_state(b)
    answered()
    is_first, ended = np.ones(b, dtype=bool), np.zeros(b, dtype=bool)
    score, length, still, left = np.zeros(b), np.zeros(b, int), np.zeros(b, int), np.full(b, per_env)
    scores: list[float] = []
    lengths: list[int] = []
    stuck = capped = lost = 0
    while left.any() and not stopped():
        params, state = model.step(torch.from_numpy(observation), state, torch.from_numpy(is_first))
        pi = model.distribution(params)
        action = pi.mode() if deterministic else pi.sample(streams.act)
        before = observation
        try:
            step = envs.step(action.numpy())
        except Halted:
            break
        answered()
        observation, reward, done = step.observation, step.reward, step.done
        score, length = score + reward, length + ~ended
        if step.why:
            score[step.lost], length[step.lost] = 0.0, 0
            lost += int(step.lost.sum())
            if lost > b * per_env:
                raise EnvironmentUnsupported(f"{lost} games were lost to failures; the last: {step.why[-1]}.")
        unchanged = (observation == before).reshape(b, -1).all(1) & (reward == 0) & ~ended & ~step.lost
        still = np.where(unchanged, still + 1, 0)
        is_stuck, is_capped = still >= stuck_after, length >= max_game_steps
        over = (done | is_stuck | is_capped) & (left > 0)
        for i in np.flatnonzero(over):
            scores.append(float(score[i]))
            lengths.append(int(length[i]))
            stuck += bool(is_stuck[i] and not done[i])
            capped += bool(is_capped[i] and not done[i] and not is_stuck[i])
        # A single environment cannot be reset, so one whose game was cut plays no further games.
        left = np.where(over, np.where(done, left - 1, 0), left)
        score, length, still = np.where(done, 0, score), np.where(done, 0, length), np.where(done, 0, still)
        is_first, ended = ended | step.lost, done
    return Evaluation(tuple(scores), tuple(lengths), stuck, capped, deterministic, lost)


@contextmanager
def fresh_envs(
    config: Config,
    count: int,
    tell: Tell = untold,
    *,
    seed: int,
    stopped: Callable[[], bool] = never,
    **options: Any,
) -> Iterator[tuple[VectorEnv, Callable[[], object]]]:
    """Yield new environments for whole games, and a function to call whenever the environments have returned.

    The environments run in this process. One that hangs is interrupted by a watchdog, as `watched` says. The global
    random streams are seeded for them, and put back after the games, as are handlers of signals and switches.

    Args:
        config: the run's config.
        count: the number of environments.
        tell: logs an event, as `MetricsLog.event` does.
        seed: of the global random streams.
        stopped: returns True to end; the environments are then not asked for another step.
        options: further arguments of `make_envs`.

    Raises:
        Halted: `stopped` returned True.
    """
    counters = SharedCounters(1)
    heartbeat = counters.heartbeats.heartbeat(0)
    env = str(getattr(config.env, "__qualname__", config.env))

    def what() -> str:
        return f"{env}: {counters.heartbeats.asked(0) or 'whole games are played'}"

    stream = Streams.of(seed, GLOBAL_STREAM).env
    with kept_switches(), kept_streams(stream), watched(config, counters, tell), waiting(what):
        heartbeat.attend = attention(stopped)
        heartbeat.asked(ALL, None, Call.CONSTRUCTOR)
        envs = make_envs(
            config.env,
            count,
            atari=config.atari,
            max_episode_steps=config.max_episode_steps,
            listener=heartbeat,
            **options,
        )
        heartbeat.answered()
        try:
            yield envs, heartbeat.answered
        finally:
            heartbeat.asked(ALL, None, Call.CLOSE)
            envs.close()
            heartbeat.answered()


def evaluate(
    config: Config,
    tensors: Mapping[str, Tensor],
    *,
    games: int = 100,
    deterministic: bool = False,
    seed: int = 0,
    threads: int = 1,
    stopped: Callable[[], bool] = never,
    tell: Tell = untold,
) -> Evaluation:
    """Play whole games with the given parameters in at most 50 new environments.

    An environment that does not answer within ``env_timeout`` counts as failed.

    Args:
        config: the run's config.
        tensors: the model's parameters and buffers by name.
        games: the least number of games.
        deterministic: take the most likely action; otherwise sample.
        seed: of the environments and of sampled actions.
        threads: the number of emulator threads.
        stopped: returns True to end with the games finished so far.
        tell: logs an event, as `MetricsLog.event` does.
    """
    with fresh_envs(config, min(games, 50), tell, seed=seed, stopped=stopped, threads=threads) as (envs, answered):
        model = make_trained(config, EnvSpec.of(envs), tensors)
        how: dict[str, Any] = {"deterministic": deterministic, "seed": seed, "stopped": stopped, "answered": answered}
        return play(model, envs, games=games, **how)


def evaluate_on_all_cores(
    config: Config,
    tensors: Mapping[str, Tensor],
    *,
    games: int,
    seed: int,
    stopped: Callable[[], bool] = never,
    tell: Tell = untold,
) -> Evaluation:
    """Evaluate as `evaluate` does, with torch and the emulators on all cores; for when training is paused."""
    cores = len(os.sched_getaffinity(0))
    with torch_threads(cores):
        return evaluate(config, tensors, games=games, seed=seed, threads=cores, stopped=stopped, tell=tell)
