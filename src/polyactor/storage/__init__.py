"""The files of a run directory.

* `run_directory`: where a run's files live, and the lock that keeps a second process out.
* `checkpoint`: saving, verifying and loading checkpoints.
* `metrics_log`: metrics rows, events, TensorBoard scalars and the summary.
* `atomic`: writing a file so that a crash leaves its old content or its new one.
"""
