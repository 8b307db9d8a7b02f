"""The target score (``stop_at``), at which a run stops once fresh games have confirmed it."""

from __future__ import annotations

from collections.abc import Callable

from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.envs.answers import FAILURES
from polyactor.errors import one_line
from polyactor.evaluation.evaluate import evaluate_on_all_cores
from polyactor.training.events import Events
from polyactor.training.stats import GAMES, Stats


class TargetScore:
    """Decides whether a run has reached its target score: in the mean of its last 100 games, and in 100 fresh games.

    The first of many noisy means to reach the target is biased upwards; the mean of the fresh games is not. With
    ``evaluate.envs`` 0 the next 100 games of training take their place. A score that cannot be confirmed is not
    reached: training goes on for at least 100 games.

    Args:
        parts: the run's parts.
        stats: the run's statistics.
        events: logs and prints the confirmation.
    """

    def __init__(self, parts: Parts, stats: Stats, events: Events) -> None:
        self.config, self.state, self.counters = parts.config, parts.state, parts.counters
        self.stats, self.events = stats, events
        self.awaited = False
        """Whether games of training are to confirm the score, and have not all ended."""

    def reached(self, stopped: Callable[[], bool]) -> bool:
        """Whether the target score is reached and confirmed; training pauses while the fresh games are played.

        Args:
            stopped: returns True to end the fresh games early; the target score then counts as not reached.
        """
        stats, target, say = self.stats, self.config.stop_at, self.events.say
        if target is None or not stats.whole or stats.games_needed > 0:
            return False
        mean, steps, wall = stats.mean100, self.counters.steps, stats.wall
        assert mean is not None
        if self.awaited:
            self.awaited = False
            return self._confirmed(mean, steps, wall, f"{GAMES} further games of training", "")
        if mean < target:
            return False
        said = f"mean of the last {GAMES} games is {mean:.2f}: "
        if self.config.evaluate.envs == 0:
            say(f"{said}the next {GAMES} of training are to confirm it")
            self.awaited, stats.games_needed = True, GAMES
            return False
        say(f"{said}playing {GAMES} fresh ones to confirm it, {self.config.evaluate.timeout:g} s at most")
        with transport.paused(self.config, self.counters, unless=stopped):
            try:
                played = evaluate_on_all_cores(
                    self.config,
                    self.state.views(),
                    games=GAMES,
                    seed=self.config.seed + 1,
                    stopped=stopped,
                    tell=self.events.tell,
                )
                failure = (
                    played.cuts + f", mean so far {played.mean:.2f}" * bool(played.scores) if played.unplayed else ""
                )
            except FAILURES as error:  # a score that fresh games cannot confirm must not end the training
                failure = (one_line(error) or type(error).__name__).rstrip(".")
        stats.apart(stats.wall - wall)
        if stopped():
            return False
        if failure:
            stats.games_needed = GAMES
            why = f"{failure}: training goes on; --evaluate.envs 0 would let games of training confirm the score"
            self.events.tell("confirmation_failed", why, agent_steps=steps, wall_s=wall)
            return False
        return self._confirmed(played.mean, steps, wall, f"{GAMES} fresh games", played.cuts)

    def _confirmed(self, mean: float, steps: int, wall: float, games: str, cuts: str) -> bool:
        """Log and print the mean of the games that were to confirm the score, and return whether it is reached.

        Args:
            mean: the mean score of the games.
            steps: agent steps when they began.
            wall: seconds of training when they began.
            games: the games in words.
            cuts: those of them that were cut, in words, or an empty string.
        """
        target, say = self.config.stop_at, self.events.say
        assert target is not None
        told = {"agent_steps": steps, "evaluation_score": mean, "wall_s": wall}
        self.events.log.event("confirmation", f"{games}, {cuts}" if cuts else games, **told)
        gave = f"they gave {mean:.2f}" + f" ({cuts})" * bool(cuts)
        if mean < target:
            say(f"{gave}, below {target:g}: training goes on")
            self.stats.games_needed = GAMES
            return False
        say(f"{gave}: reached after {steps:,} steps")
        self.stats.reached, self.stats.confirmation = (steps, round(wall, 3)), mean
        return True
