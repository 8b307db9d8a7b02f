"""Evaluation: whole games played with fixed parameters, and their scores."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyactor.agent.streams import EVALUATION_STREAM, GLOBAL_STREAM, Streams
from polyactor.config import Config
from polyactor.data import leaves, map_tree
from polyactor.envs import EnvSpec, VectorEnv, is_atari, make_envs, name_of
from polyactor.envs.atari import MAX_FRAMES
from polyactor.errors import EnvironmentUnsupported
from polyactor.evaluation.policy import make_trained
from polyactor.files import same_directory
from polyactor.models.actor_critic import ActorCritic
from polyactor.shared.counters import SharedCounters, never, nothing
from polyactor.shared.heartbeat import ALL, Call, Heartbeat
from polyactor.system.deadline import Halted
from polyactor.system.machine import torch_threads
from polyactor.system.notices import Doing, Say, unsaid, waiting
from polyactor.system.process_state import attention, kept_streams, kept_switches
from polyactor.system.streams import lasting_streams
from polyactor.transport.watchdog import Tell, untold, watched

STUCK_AFTER = 2_000
"""Agent steps without reward or any change of the observation after which a game of Atari counts as stuck."""
MOST_ENVS = 50
"""Most environments of an evaluation, unless ``--evaluate.envs`` says more."""


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
        unplayed: games that were asked for and had not ended when the time was over, or a signal came.
    """

    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    stuck: int
    capped: int
    deterministic: bool
    lost: int = 0
    unplayed: int = 0

    @property
    def mean(self) -> float:
        """Mean of the scores; NaN where no game has ended."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation of the scores."""
        return statistics.pstdev(self.scores) if self.scores else math.nan

    @property
    def cuts(self) -> str:
        """The games that did not end by themselves, in words with the flags that decide it; empty if all did."""
        counts = {
            "stuck, so cut (--evaluate.stuck-after)": self.stuck,
            "cut at the step limit (--evaluate.max-steps)": self.capped,
            "lost to failures and played again": self.lost,
            "not ended in time (--evaluate.timeout)": self.unplayed,
        }
        return ", ".join(f"{count} {words}" for words, count in counts.items() if count)

    def __str__(self) -> str:
        """Return the result in one line."""
        how, cuts = "greedy" if self.deterministic else "sampled", self.cuts and f", {self.cuts}"
        if not self.scores:
            return f"{how}: no score, for no game has ended{cuts}; --evaluate.max-steps N would cut games"
        games = f"{len(self.scores)} game{'s' * (len(self.scores) != 1)}"
        spread = f"from {min(self.scores):g} to {max(self.scores):g}"
        return f"{how}: {self.mean:.2f} ± {self.std:.2f} over {games}, {spread}{cuts}"


@torch.inference_mode()
def play(
    model: ActorCritic,
    envs: VectorEnv,
    *,
    games: int,
    deterministic: bool,
    seed: int,
    max_game_steps: float = math.inf,
    stuck_after: float = math.inf,
    timeout: float = math.inf,
    stopped: Callable[[], bool] = never,
    answered: Callable[[], object] = nothing,
    note: Say = unsaid,
) -> Evaluation:
    """Play whole games, the same number in each environment, so that short games do not count more often.

    An environment whose game was cut plays on and is not counted until that game ends, or until all that still have
    games to play wait like this; then all are reset, since a single one cannot be.

    Args:
        model: acts, and is not changed.
        envs: B environments, reset with the seed.
        games: the least number of games; rounded up to a multiple of B.
        deterministic: take the most likely action; otherwise sample.
        seed: of the environments and of sampled actions.
        max_game_steps: agent steps after which a game is cut; its score so far counts.
        stuck_after: agent steps without reward or new observation after which a game is cut; its score counts.
        timeout: seconds after which the games finished so far are returned.
        stopped: called after every step; returns True to end with the games finished so far.
        answered: called whenever the environments have returned from a reset or step.
        note: called whenever games have ended, with how many have.

    Raises:
        EnvironmentUnsupported: an environment failed again and again, or failures ended more than `games` games.
    """
    b, per_env = envs.num_envs, -(-games // envs.num_envs)
    streams = Streams.of(seed, EVALUATION_STREAM)
    end, resets = monotonic() + timeout, 0
    left, cut, is_first = np.full(b, per_env), np.ones(b, bool), np.ones(b, bool)
    scores: list[float] = []
    lengths: list[int] = []
    stuck = capped = lost = 0
    while left.any() and not stopped() and monotonic() < end:
        if not left[~cut].any():  # as at the start
            observation, state = envs.reset(streams.env + b * resets), model.initial_state(b)
            answered()
            is_first, ended, cut, resets = np.ones(b, bool), np.zeros(b, bool), np.zeros(b, bool), resets + 1
            score, length, still = np.zeros(b), np.zeros(b, int), np.zeros(b, int)
        legal = None if envs.action_mask is None else torch.from_numpy(envs.action_mask)
        seen = map_tree(torch.from_numpy, observation)
        params, state = model.step(seen, state, torch.from_numpy(is_first), action_mask=legal)
        pi = model.distribution(params)
        action = pi.mode() if deterministic else pi.sample(streams.act)
        before = observation
        try:
            step = envs.step(model.actions.sent(action).numpy())
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
        same = [(x == y).reshape(b, -1).all(1) for x, y in zip(leaves(observation), leaves(before), strict=True)]
        unchanged = np.logical_and.reduce(same) & (reward == 0) & ~ended & ~step.lost
        still = np.where(unchanged, still + 1, 0)
        is_stuck, is_capped = still >= stuck_after, length >= max_game_steps
        over = (done | is_stuck | is_capped) & (left > 0) & ~cut
        for i in np.flatnonzero(over):
            scores.append(float(score[i]))
            lengths.append(int(length[i]))
            stuck += bool(is_stuck[i] and not done[i])
            capped += bool(is_capped[i] and not done[i] and not is_stuck[i])
        if over.any():
            note(f"{len(scores)} of {b * per_env} games")
        left, cut = left - over, (cut | over) & ~done & ~step.lost
        score, length, still = np.where(done, 0, score), np.where(done, 0, length), np.where(done, 0, still)
        is_first, ended = ended | step.lost, done
    return Evaluation(tuple(scores), tuple(lengths), stuck, capped, deterministic, lost, int(left.sum()))


def limits(config: Config) -> dict[str, float]:
    """Return the agent steps after which `play` cuts a game: those of the flags, those of Atari, or infinity."""
    options, atari = config.evaluate, is_atari(config.environment)
    most = MAX_FRAMES // config.atari.frame_skip if atari and config.max_episode_steps is None else math.inf
    return {
        "max_game_steps": options.max_steps or most,
        "stuck_after": options.stuck_after or (STUCK_AFTER if atari else math.inf),
    }


@contextmanager
def fresh_envs(
    config: Config,
    count: int,
    tell: Tell = untold,
    *,
    seed: int,
    doing: Doing,
    stopped: Callable[[], bool] = never,
    **options: Any,
) -> Iterator[tuple[VectorEnv, Heartbeat]]:
    """Yield new environments for whole games, and the heartbeat to tell whenever they are asked and have answered.

    The environments run in this process. One that hangs is interrupted by a watchdog, as `watched` says. The global
    random streams are seeded for them, and put back after the games, as are the working directory, handlers of signals
    and switches.

    Args:
        config: the run's config.
        count: the number of environments.
        tell: logs an event, as `MetricsLog.event` does.
        seed: of the global random streams.
        doing: says in notices what goes on.
        stopped: returns True to end; the environments are then not asked for another step.
        options: further arguments of `make_envs`.

    Raises:
        Halted: `stopped` returned True.
    """
    counters = SharedCounters(1)
    heartbeat = counters.heartbeats.heartbeat(0)

    def what() -> str:
        asked = counters.heartbeats.asked(0)
        return f"{name_of(config.env)}: {doing()}" + f"; {asked}" * (asked is not None)

    stream = Streams.of(seed, GLOBAL_STREAM).env
    with (
        same_directory(),
        lasting_streams(),
        kept_switches(),
        kept_streams(stream),
        watched(config, counters, tell),
        waiting(what),
    ):
        heartbeat.attend = attention(stopped)
        heartbeat.asked(ALL, None, Call.CONSTRUCTOR)
        envs = make_envs(
            config.environment,
            count,
            atari=config.atari,
            max_episode_steps=config.max_episode_steps,
            listener=heartbeat,
            **options,
        )
        heartbeat.answered()
        try:
            yield envs, heartbeat
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
    """Play whole games with the given parameters in new environments: as many as a worker has, or ``evaluate.envs``.

    An environment that does not answer within ``env_timeout`` counts as failed. After ``evaluate.timeout`` seconds the
    evaluation ends with the games so far. Notices say how many games have ended.

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
    most = min(config.envs, MOST_ENVS) if config.evaluate.envs is None else config.evaluate.envs
    count = max(1, min(games, most))
    doing = Doing(f"making {count} environment{'s' * (count > 1)}")
    with fresh_envs(config, count, tell, seed=seed, doing=doing, stopped=stopped, threads=threads) as (envs, heartbeat):
        doing.words = f"0 of {games} games"
        spec = EnvSpec.of(envs)
        # Threads that wait for one another cost more than a few rows of a small network.
        with torch_threads(torch.get_num_threads() if spec.image else 1):
            return play(
                make_trained(config, spec, tensors),
                envs,
                games=games,
                deterministic=deterministic,
                seed=seed,
                timeout=config.evaluate.timeout,
                stopped=stopped,
                answered=heartbeat.answered,
                note=partial(setattr, doing, "words"),
                **limits(config),
            )


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
