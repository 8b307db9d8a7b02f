"""The parts of the training loop: an actor collects rollouts, a learner computes gradients, an updater applies them.

* `actor`: steps environments with the policy and returns rollouts.
* `rollout_row`: shapes and dtypes of one row of a rollout.
* `learner`: turns a rollout into the gradients of a loss.
* `reward_scaling`: scales and clips the rewards that a loss learns from.
* `updater`: moves θ by a gradient, with the optimizer.
* `replica`: a private copy of θ that a model computes with.
* `replay_buffer`: past rollouts in memory-mapped files.
* `compiled`: gradients by torch.compile.
* `parts`: makes these objects from the config of a run.
* `sharing`: makes the queues and the memory that the roles of a scheme share.
* `streams`: the random streams of a worker.
* `resumables`: the state that a checkpoint adds for an exact resume.
"""
