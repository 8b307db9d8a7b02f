"""The settings of a run: presets, validation, and a config as JSON.

* `presets`: methods and presets by name.
* `published`: presets for results that others published.
* `registry`: algorithms, schemes and optimizers by name.
* `check`: whether a config can be run.
* `autotune`: ``--workers auto`` and ``--envs auto``.
* `serialize`: a config as JSON, and back.
"""
