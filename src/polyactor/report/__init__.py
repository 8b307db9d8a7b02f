"""Results for people: figures, tables, videos and speed.

* `curves`: learning curves of one or more runs as a PNG.
* `compare`: a table of runs grouped by seed.
* `video`: one game as an mp4.
* `speed`: the speed of training on this machine.
"""
