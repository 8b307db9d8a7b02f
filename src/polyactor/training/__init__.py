"""A training run: its loop, statistics, events, checkpoints and end.

* `trainer`: starts or resumes a run and decides when it ends.
* `run`: a run as others see it: one that has ended, and one that goes on.
* `callbacks`: objects of a user's own that are told what happens in a run.
* `stats`: games, scores and speed, as metrics rows and as the summary.
* `events`: what is logged and printed about workers, environments and memory.
* `progress`: the display in the terminal.
* `checkpointing`: checkpoints during a run, also while the disk is full.
* `resume`: a run's parts, rebuilt from a checkpoint.
* `background_eval`: evaluation of checkpoints in another process during training.
* `target_score`: the score at which a run stops.
* `stragglers`: workers that are much slower than the others.
* `signals`: stopping by SIGINT and SIGTERM.
* `forkserver_preload`: the modules that every worker process starts with.
"""
