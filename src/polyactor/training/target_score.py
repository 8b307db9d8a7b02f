"""The target score (``stop_at``), at which a run stops once fresh games have confirmed it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.evaluation.evaluate import evaluate_on_all_cores
from polyactor.system.deadline import Halted
from polyactor.training.events import Events
from polyactor.training.stats import GAMES, Stats


class TargetScore:
    """Decides whether a run has reached its target score: in the mean of its last 100 games, and in 100 fresh games.

    The first of many noisy means to reach the target is biased upwards; the mean of the fresh games is not.

    Args:
        parts: the run's parts.
        stats: the run's statistics.
        events: logs and prints the confirmation.
    """

    def __init__(self, parts: Parts, stats: Stats, events: Events) -> None:
        self.config, self.state, self.counters = parts.config, parts.state, parts.counters
        self.stats, self.events = stats, events

    def reached(self, stopped: Callable[[], bool]) -> bool:
        """Whether the target score is reached and confirmed; training pauses while the fresh games are played.

        Args:
            stopped: returns True to end the fresh games early; the target score then counts as not reached.
        """
        stats, target, say = self.stats, self.config.stop_at, self.events.say
        if target is None or not stats.whole or stats.games_needed > 0:
            return False
        mean = stats.mean100
        assert mean is not None
        if mean < target:
            return False
        steps, wall = self.counters.steps, stats.wall
        say(f"mean of the last {GAMES} games is {mean:.2f}: playing {GAMES} fresh ones to confirm it")
        with suppress(Halted), transport.paused(self.config, self.counters, unless=stopped):
            played = evaluate_on_all_cores(
                self.config,
                self.state.views(),
                games=GAMES,
                seed=self.config.seed + 1,
                stopped=stopped,
                tell=self.events.tell,
            )
        stats.apart(stats.wall - wall)
        if stopped():
            return False
        fresh = played.mean
        told = {"agent_steps": steps, "evaluation_score": fresh, "wall_s": wall}
        self.events.log.event("confirmation", f"{GAMES} fresh games", **told)
        if fresh < target:
            say(f"they gave {fresh:.2f}, below {target:g}: training goes on")
            stats.games_needed = GAMES
            return False
        say(f"they gave {fresh:.2f}: reached after {steps:,} steps")
        stats.reached, stats.confirmation = (steps, round(wall, 3)), fresh
        return True
