"""The main process of a run: starting, resuming, reporting, saving and stopping."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyactor import transport
from polyactor.agent.parts import Parts, precision
from polyactor.config import Config
from polyactor.envs import EnvSpec, env_spec, name_of
from polyactor.errors import PolyactorError, shown
from polyactor.evaluation.policy import refuse_not_finite, start_from
from polyactor.fields import expect
from polyactor.report.video import keepsakes
from polyactor.settings.check import check
from polyactor.settings.serialize import to_json
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import MetricsLog
from polyactor.storage.run_directory import claimed, refuse_taken, run_directory, run_of, write_config
from polyactor.system import failpoints
from polyactor.system.machine import tune_allocator, undisturbed
from polyactor.training.background_eval import BackgroundEvaluation
from polyactor.training.checkpointing import Checkpointer, advise
from polyactor.training.events import Events
from polyactor.training.progress import Progress, banner, farewell
from polyactor.training.resume import config_of, going_on, refuse_inexact, restored
from polyactor.training.signals import stop_signals
from polyactor.training.stats import Stats
from polyactor.training.target_score import TargetScore

SHOW_EVERY = 0.25
"""Seconds between two updates of the live panel."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run directory.
        status: "done", "reached" (the target score) or "stopped" (by a signal).
        summary: the content of ``summary.json``.
    """

    path: Path
    status: str
    summary: Mapping[str, Any]


@undisturbed()
def train(config: Config, spec: EnvSpec, reasons: Sequence[str] = ()) -> Run:
    """Train a new run and return it when it has ended.

    Args:
        config: the run's config.
        spec: what the environments look like: spaces and limits.
        reasons: a sentence for each number that was chosen automatically, printed below the banner.

    Raises:
        UsageError: a setting has a value that is not allowed.
        RunDirectoryError: the run directory is taken or cannot be written.
        PolyactorError: any other error that stopped the run; it is logged as an event, too.
    """
    check(config)
    failpoints.arm()
    directory = run_directory(config)
    config = replace(config, out=str(directory))  # replay keeps its files there
    tune_allocator()
    parts = Parts.fresh(config, spec)
    refuse_inexact(config)
    if config.init_from is not None:
        start_from(parts.state, Path(config.init_from))
    with claimed(directory), ExitStack() as opened:
        refuse_taken(directory, mine=True)
        return _Training(parts, directory, {}, opened).run(reasons)


@undisturbed()
def resume(
    path: str | Path,
    *,
    steps: int | None = None,
    algorithm: str | None = None,
    restart: bool = False,
    env: Any = None,
    model: Any = None,
    trust_env: bool = False,
    quiet: bool = False,
) -> Run:
    """Resume a run from a checkpoint: counters, schedules, optimizer and running statistics continue.

    Environments and random streams start anew, except in a run with ``exact_resume``, which continues bit for bit.

    Args:
        path: the run directory, to resume from its last checkpoint, or one of its checkpoint directories.
        steps: a new total of agent steps.
        algorithm: ``file.py:Class``; needed where the run's algorithm came from a file, since a config loads no code.
        restart: turn ``exact_resume`` off, now and for later resumes, so that environments start anew.
        env, model: an environment, or parts of the network by name, in place of the run's; needed where those were
            callables that cannot be imported by name.
        trust_env: allow the import of the module of an environment or part of a network, ``module:something``. The
            import runs code that whoever made the checkpoint chose.
        quiet: print nothing.

    Raises:
        UsageError: the environment or the algorithm is code that the caller has not named or trusted.
        CheckpointError: there is no checkpoint, or it is damaged or does not fit.
        RunDirectoryError: another process trains in the run directory.
    """
    path = Path(expect("path", path, str | Path))
    if not checkpoint.exists(path):
        checkpoint.load(path)  # raises, before a directory that is no run is locked
    asked, path = path.absolute(), run_of(path.absolute())
    with claimed(path), ExitStack() as opened:
        found = checkpoint.load(asked)
        config = config_of(found, algorithm=algorithm, env=env, model=model, trust_env=trust_env)
        config, said = going_on(config, found, steps=steps, restart=restart, quiet=quiet, out=path)
        check(config)
        failpoints.arm()
        tune_allocator()
        refuse_not_finite(found)
        parts = restored(config, env_spec(config.env, atari=config.atari, seconds=config.env_timeout), found)
        return _Training(parts, path, found.meta, opened).run(said)


class _Training:
    """The main loop of a run: it reports, saves, evaluates, and decides when the run ends.

    Args:
        parts: the run's parts.
        directory: the run directory, which this process has locked.
        before: the meta of the checkpoint that the run resumes from; empty in a new run.
        opened: closes the log and the live panel, and restores the signal handlers, when the run has ended.
    """

    def __init__(self, parts: Parts, directory: Path, before: Mapping[str, Any], opened: ExitStack) -> None:
        config, counters = parts.config, parts.counters
        self.parts, self.config, self.directory = parts, config, directory
        self.state, self.counters = parts.state, counters
        self.resumed = bool(before)
        self.stats = Stats(config, counters, before)
        write_config(directory, to_json(config))  # only now: the checkpoint has passed all checks
        title = f"{config.preset or 'polyactor'} · {name_of(config.env)} · {config.scheme.name}"
        self.log = opened.enter_context(MetricsLog(directory, append=self.resumed, steps=counters.steps))
        self.progress = opened.enter_context(Progress(title, config.steps, quiet=config.quiet))
        self.stop = opened.enter_context(stop_signals(config, counters, self.progress.say))
        self.checkpointer = Checkpointer(directory, self.log, self.progress.say)
        self.events = Events(config, counters, self.log, self.progress.say)
        self.background = BackgroundEvaluation(
            config, self.checkpointer, self.events, before.get("best_evaluation"), counters.steps
        )
        opened.callback(self.background.close)
        self.target = TargetScore(parts, self.stats, self.events)
        self.next_checkpoint = time.monotonic() + config.checkpoint_every
        self.next_show, self.best_is_unsaved = 0.0, False

    def run(self, reasons: Sequence[str] = ()) -> Run:
        """Train until all steps are done, the target score is reached or a signal asks to stop; return the run."""
        config, log, steps = self.config, self.log, self.counters.steps
        used = precision(config, images=self.state.layout.convolutional)
        lines = banner(config, self.directory, used, steps if self.resumed else None)
        self.progress.say("\n".join((*lines, *reasons)))
        log.event("started", "; ".join(reasons), precision=used, workers=config.workers, envs=config.envs)
        if self.resumed:
            log.event("resumed", agent_steps=steps, rows_dropped=log.taken_back)
        try:
            with closing(transport.run(self.parts, self.events.tell)) as scheme:
                try:
                    status = self._watch(scheme)
                finally:
                    self.stats.ended = time.monotonic()
                if not config.scheme.single:
                    scheme.close()  # workers end; environments of this process are closed after the run is saved
                self._finish(status)
                summary = self.stats.summary(status)
                log.summary(summary)
            self._keep_pictures(status)
        except Exception as error:
            advise(error, self.directory)
            with suppress(PolyactorError):  # a second error must not hide the one that stopped the run
                log.event("failed", shown(error) or type(error).__name__)
                log.summary(self.stats.summary("failed"))
            raise
        return Run(self.directory, status, summary)

    def _watch(self, scheme: Generator[None, None, None]) -> str:
        """Let the workers train until the run ends, and return its status."""
        for _ in scheme:
            if self._take_in():
                return "reached"
            if self.stop.asked or (self.config.scheme.single and self.counters.steps >= self.config.steps):
                break
        else:
            self._take_in()
        return "stopped" if self.stop.asked else "done"

    def _take_in(self) -> bool:
        """Report, save and evaluate what is due; return whether the target score is reached."""
        stats = self.stats
        stats.take_in_games()
        self.events.tell_news()
        now, due = time.monotonic(), stats.due
        if due or (now >= self.next_checkpoint and stats.moved):
            self._report(due=due)
        elif now >= self.next_show:
            self.next_show = now + SHOW_EVERY
            self.progress.show(stats.row(), new=False)
        if now >= self.next_checkpoint:
            self.next_checkpoint = now + self.config.checkpoint_every
            self._save()
        self.background.advance(self.counters.steps, stats.wall, self._save)
        return self.target.reached(self.stop)

    def _report(self, *, due: bool) -> None:
        """Log and display a metrics row."""
        row = self.stats.report(due=due)
        self.log.row(row)
        self.progress.show(row, new=True)
        self.events.reported(row["rss_mb"])
        if due and self.stats.is_best(row) and self.config.evaluate_every is None:
            self.best_is_unsaved = True

    def _save(self, *tags: str, final: bool = False) -> Path | None:
        """Save a checkpoint with the tag `last` and these; return its directory, or None if a later try is allowed."""
        tags = tuple(dict.fromkeys(("last", *tags, *["best"] * self.best_is_unsaved)))
        with transport.still(self.config, self.counters) as consistent:
            meta, steps = self.stats.summary("running") | self.stats.kept(), self.counters.steps
            tensors = self.state.tensors() | self.parts.resumables.tensors() | self.counters.tensors()
            copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        meta |= {"consistent": consistent, "config": to_json(self.config), "best_evaluation": self.background.best}
        reason = "" if consistent else "a worker did not pause in time, so it may hold half of an update"
        saved = self.checkpointer.save(copies, meta, steps, tags=tags, reason=reason, final=final)
        self.best_is_unsaved = self.best_is_unsaved and saved is None
        return saved

    def _finish(self, status: str) -> None:
        """Take in the last evaluation, log the last metrics row and save the last checkpoint."""
        reason = {"stopped": "a signal asked for it", "reached": "the score asked for", "done": "all steps are done"}
        self.log.event("stopping", reason[status])
        self.background.hear(self.stats.wall, unless=self.stop)
        if self.stats.moved:
            self._report(due=status != "stopped")  # a resumed run keeps even spacing of rows
        best = status == "reached" or not checkpoint.exists(self.directory, tag="best")
        self._save(*["best"] * best, final=True)

    def _keep_pictures(self, status: str) -> None:
        """Write learning curve and video and print the result; of a stopped run, only print how to resume it."""
        if status == "stopped":
            self.progress.say(f"stopped and saved; go on with: polyactor resume {self.directory}")
            return
        say, games = self.progress.say, bool(self.stats.scores)
        skipped = dict(keepsakes(self.config, self.directory, games=games, stopped=self.stop, say=say))
        for event, why in skipped.items():
            self.log.event(event, why)
        for line in farewell(status, self.config, self.stats.summary(status), self.directory, skipped):
            say(line)
