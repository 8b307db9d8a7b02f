"""The score at which a run stops."""

from __future__ import annotations

from collections.abc import Callable

from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.evaluation.evaluate import evaluate_on_all_cores
from polyactor.training.events import Teller
from polyactor.training.stats import GAMES, Tally


class Goal:
    """Reached when the last 100 games are at ``stop_at``, and 100 fresh ones confirm it.

    The first of many noisy means to reach it is high by chance; games that had no part in that choice are not.

    Args:
        parts, tally: of the run.
        teller: hears of fresh games.
    """

    def __init__(self, parts: Parts, tally: Tally, teller: Teller) -> None:
        self.config, self.state, self.board = parts.config, parts.state, parts.board
        self.tally, self.teller = tally, teller

    def reached(self, stopped: Callable[[], bool]) -> bool:
        """Whether it is, now.

        Args:
            stopped: ends the fresh games when it says so; then it is not.
        """
        tally, target, say = self.tally, self.config.stop_at, self.teller.say
        if target is None or not tally.whole or tally.games_needed > 0:
            return False
        mean = tally.mean100
        assert mean is not None
        if mean < target:
            return False
        steps, wall = self.board.steps, tally.wall
        say(f"mean of the last {GAMES} games is {mean:.2f}: playing {GAMES} fresh ones to confirm it")
        with transport.paused(self.config, self.board, unless=stopped):
            played = evaluate_on_all_cores(
                self.config,
                self.state.views(),
                games=GAMES,
                seed=self.config.seed + 1,
                stopped=stopped,
                tell=self.teller.tell,
            )
        tally.apart(tally.wall - wall)
        if stopped():
            return False
        fresh = played.mean
        told = {"agent_steps": steps, "evaluation_score": fresh, "wall_s": wall}
        self.teller.log.event("confirmation", f"{GAMES} fresh games", **told)
        if fresh < target:
            say(f"they gave {fresh:.2f}, below {target:g}: training goes on")
            tally.games_needed = GAMES
            return False
        say(f"they gave {fresh:.2f}: reached after {steps:,} steps")
        tally.reached, tally.confirmation = (steps, round(wall, 3)), fresh
        return True
