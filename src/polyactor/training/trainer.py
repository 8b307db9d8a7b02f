"""The main process of a run: starting, resuming, reporting, saving and stopping."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyactor import transport
from polyactor.agent.parts import Parts, precision
from polyactor.config import Config
from polyactor.envs import EnvSpec, name_of
from polyactor.errors import ClusterFailed, PolyactorError, shown
from polyactor.evaluation.policy import start_from
from polyactor.fields import expect
from polyactor.report.video import keepsakes
from polyactor.settings.check import check
from polyactor.settings.serialize import to_json
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import MetricsLog
from polyactor.storage.run_directory import claimed, how_to_resume, refuse_taken, run_directory, run_of, write_config
from polyactor.system import failpoints
from polyactor.system.interpreter import no_exit
from polyactor.system.machine import tune_allocator, undisturbed
from polyactor.training import callback_state
from polyactor.training.background_eval import BackgroundEvaluation
from polyactor.training.callbacks import Callbacks, resumed
from polyactor.training.checkpointing import Checkpointer, advise
from polyactor.training.events import Events
from polyactor.training.progress import Progress, banner, farewell
from polyactor.training.resume import config_of, going_on, placed, refuse_inexact, restored
from polyactor.training.run import Run, RunHandle
from polyactor.training.signals import stop_signals
from polyactor.training.stats import Stats
from polyactor.training.target_score import TargetScore

SHOW_EVERY = 0.25
"""Seconds between two updates of the live panel."""


@undisturbed()
def train(config: Config, spec: EnvSpec, reasons: Sequence[str] = (), callbacks: Sequence[object] = ()) -> Run:
    """Train a new run and return it when it has ended.

    Args:
        config: the run's config.
        spec: what the environments look like: spaces and limits.
        reasons: a sentence for each number that was chosen automatically, printed below the banner.
        callbacks: objects that are told of the run's events, as `Callback`.

    Raises:
        UsageError: a setting has a value that is not allowed.
        RunDirectoryError: the run directory is taken or cannot be written.
        ClusterFailed: the machines of the workers cannot be reached; later, they were lost.
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
        start_from(parts.state, Path(config.init_from), config.model, numbers=spec.continuous)
    transport.refuse_unreachable(config)
    with claimed(directory), ExitStack() as opened:
        refuse_taken(directory, mine=True)
        return _Training(parts, directory, {}, opened, callbacks).run(reasons)


@undisturbed()
@no_exit()
def resume(
    path: str | Path,
    *,
    steps: int | None = None,
    algorithm: str | None = None,
    restart: bool = False,
    env: Any = None,
    env_wrappers: Sequence[Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trust_code: bool = False,
    trust_env: bool = False,
    quiet: bool = False,
    callbacks: Sequence[object] | None = None,
    transport: str | None = None,
    ray: Mapping[str, Any] | None = None,
) -> Run:
    """Resume a run from a checkpoint: counters, schedules, optimizer and running statistics continue.

    Environments and random streams start anew, except in a run with ``exact_resume``, which continues bit for bit.

    Args:
        path: the run directory, to resume from its last checkpoint, or one of its checkpoint directories.
        steps: a new total of agent steps.
        algorithm: ``file.py:Class``, in place of the run's own, which is imported from its file if it is trusted.
        restart: turn ``exact_resume`` off, now and for later resumes, so that environments start anew.
        env, env_wrappers, model: an environment, wrappers, or parts of a network such as ``{"torso": Net}``, in place
            of the run's; needed where those have no name to import.
        trust_code: import the files and modules that the run's config names, which runs code that whoever made the
            checkpoint chose; `trust_env` is the same for the environment and its wrappers alone.
        quiet: print nothing.
        callbacks: names, classes or objects in place of the run's callbacks; needed where one of these was an object.
        transport, ray: where workers are from now on, as `train` takes them; of `ray` what stays may be left out.

    Raises:
        UsageError: the run's config names code that the caller has neither handed over nor trusted.
        CheckpointError: there is no checkpoint, or it is damaged or does not fit.
        RunDirectoryError: another process trains in the run directory.
    """
    path = Path(expect("path", path, str | Path))
    if not checkpoint.exists(path):
        checkpoint.load(path)  # raises, before a directory that is no run is locked
    asked, path = path.absolute(), run_of(path.absolute())
    with claimed(path), ExitStack() as opened:
        found = checkpoint.load(asked)
        handed: dict[str, Any] = {"env": env, "env_wrappers": env_wrappers, "model": model, "callbacks": callbacks}
        config, own = resumed(config_of(found, algorithm, trust_code, trust_env, **handed), callbacks)
        config = placed(config, transport, ray or {})
        config, said = going_on(config, found, steps=steps, restart=restart, quiet=quiet, out=path)
        callback_state.restore(own, found.meta, found.tensors)
        failpoints.arm()
        tune_allocator()
        parts = restored(config, found)
        return _Training(parts, path, found.meta, opened, own).run(said)


class _Training:
    """The main loop of a run: it reports, saves, evaluates, and decides when the run ends.

    Args:
        parts: the run's parts.
        directory: the run directory, which this process has locked.
        before: the meta of the checkpoint that the run resumes from; empty in a new run.
        opened: closes the log and the live panel, and restores the signal handlers, when the run has ended.
        callbacks: objects that are told of the run's events.
    """

    def __init__(
        self, parts: Parts, directory: Path, before: Mapping[str, Any], opened: ExitStack, callbacks: Sequence[object]
    ) -> None:
        config, counters = parts.config, parts.counters
        self.parts, self.config, self.directory = parts, config, directory
        self.state, self.counters, self.resumed = parts.state, counters, bool(before)
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
        self.callbacks = Callbacks(callbacks, RunHandle(parts, directory, self.stats, self.events), self.log, self.stop)
        self.target = TargetScore(parts, self.stats, self.events)
        self.next_checkpoint, self.next_show = time.monotonic() + config.checkpoint_every, 0.0
        self.best_is_unsaved = False

    def run(self, reasons: Sequence[str] = ()) -> Run:
        """Train until all steps are done, the target score is reached or a signal asks to stop; return the run."""
        config, log, steps = self.config, self.log, self.counters.steps
        used = precision(config, images=self.state.layout.convolutional)
        lines = banner(config, self.directory, used, steps if self.resumed else None)
        self.progress.say("\n".join((*lines, *reasons)))
        log.event("started", "; ".join(reasons), precision=used, workers=config.workers, envs=config.envs)
        if self.resumed:
            log.event("resumed", agent_steps=steps, rows_dropped=log.taken_back)
        self.callbacks.start()
        try:
            with no_exit(), closing(transport.run(self.parts, self.events.tell)) as scheme:
                try:
                    status = self._watch(scheme)
                except ClusterFailed:
                    if self.stats.moved:  # what has been learned is here, and whole
                        self._save(final=True)
                    raise
                finally:
                    self.stats.ended = time.monotonic()
                if not config.scheme.single:
                    scheme.close()  # workers end; environments of this process are closed after the run is saved
                self._finish(status)
                summary = self.stats.summary(status)
                log.summary(summary)
            self._keep_pictures(status)
            self.callbacks.end(status)
        except Exception as error:
            advise(error, self.directory)
            with suppress(PolyactorError):  # a second error must not hide the one that stopped the run
                log.event("failed", shown(error) or type(error).__name__)
                log.summary(self.stats.summary("failed"))
                self.callbacks.end("failed")
            raise
        return Run(self.directory, status, summary)

    def _watch(self, scheme: Generator[None, None, None]) -> str:
        """Let the workers train until the run ends, and return its status."""
        for _ in scheme:
            if over := self._take_in():
                return over
            if self.stop.asked or (self.config.scheme.single and self.counters.steps >= self.config.steps):
                break
        else:
            self._take_in()
        return "stopped" if self.stop.asked else "done"

    def _take_in(self) -> str:
        """Report, save and evaluate what is due; return the status with which the run ends now, or an empty string."""
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
        self.callbacks.deliver()
        return "callback" if self.callbacks.run.asked else "reached" * self.target.reached(self.stop)

    def _report(self, *, due: bool) -> None:
        """Log and display a metrics row."""
        row = self.stats.report(due=due)
        self.log.row(row)
        self.progress.show(row, new=True)
        self.events.reported(row["rss_mb"])
        self.best_is_unsaved |= due and self.stats.is_best(row) and self.config.evaluate_every is None
        self.callbacks.report(row, due=due)

    def _save(self, *tags: str, final: bool = False) -> Path | None:
        """Save a checkpoint with the tag `last` and these; return its directory, or None if a later try is allowed."""
        tags = tuple(dict.fromkeys(("last", *tags, *["best"] * self.best_is_unsaved)))
        own, kept = self.callbacks.states()
        with transport.still(self.config, self.counters) as consistent:
            meta, steps = self.stats.summary("running") | self.stats.kept(), self.counters.steps
            tensors = self.state.tensors() | self.parts.resumables.tensors() | self.counters.tensors()
            copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        meta |= {"consistent": consistent, "config": to_json(self.config), "best_evaluation": self.background.best}
        meta |= {callback_state.PREFIX: own} if own else {}
        reason = "" if consistent else "a worker did not pause in time, so it may hold half of an update"
        saved = self.checkpointer.save(copies | kept, meta, steps, tags=tags, reason=reason, final=final)
        self.best_is_unsaved = self.best_is_unsaved and saved is None
        return saved

    def _finish(self, status: str) -> None:
        """Take in the last evaluation, log the last metrics row and save the last checkpoint."""
        reason = {"stopped": "a signal asked for it", "reached": "the score asked for", "done": "all steps are done"}
        self.log.event("stopping", reason.get(status, self.callbacks.run.asked))
        self.background.hear(self.stats.wall, unless=self.stop)
        if self.stats.moved:
            self._report(due=status != "stopped")  # a resumed run keeps even spacing of rows
        self.callbacks.deliver()  # what they change is saved
        self._save(*["best"] * (status == "reached" or not checkpoint.exists(self.directory, tag="best")), final=True)

    def _keep_pictures(self, status: str) -> None:
        """Write learning curve and video and print the result; of a stopped run, only print how to resume it."""
        if status == "stopped":
            self.progress.say(f"stopped and saved; {how_to_resume(self.directory)}")
            return
        say, games = self.progress.say, bool(self.stats.scores)
        skipped = dict(keepsakes(self.config, self.directory, games=games, stopped=self.stop, say=say))
        for event, why in skipped.items():
            self.log.event(event, why)
        for line in farewell(status, self.config, self.stats.summary(status), self.directory, skipped):
            say(line)
