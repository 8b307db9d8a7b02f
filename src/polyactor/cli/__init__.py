"""The command line ``polyactor``.

* `main`: the entry point and exit codes; the verbs that train.
* `verbs`: the verbs that evaluate, show or measure.
* `flags`: from arguments to a config.
* `list_presets`: the output of ``polyactor presets``.
"""
