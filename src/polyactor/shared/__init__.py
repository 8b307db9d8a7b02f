"""Objects in shared memory through which the processes of a run communicate.

* `counters`: updates, steps, games and metrics of each worker, and the command to pause or stop.
* `changes`: settings that are changed while a run goes on.
* `heartbeat`: each worker's last sign of life, and how long an environment has not answered.
* `slot_queue`: bounded queues between workers and the run's own process.
* `exchange`: what workers and the main role of a scheme exchange, and joint rollouts.
* `gradient_slots`: buffers for gradients on their way to a parameter server.
* `locks`: locks for reading and writing the parameters.
* `timing`: a stopwatch for the parts of a worker's work.
"""
