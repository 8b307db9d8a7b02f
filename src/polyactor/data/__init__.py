"""The data that everything speaks.

* `rollout`: rollouts, the memo of what was computed of them, and batches.
* `learning`: what a model says of them, and the gradients that come of it.
* `frames`: the frames of stacks, each once.
* `wire`: tensors as they travel between machines.

Nothing here but `wire` imports torch when it is loaded, and neither do `equations`, `optim.rules` or `algorithms`:
they are written with tensor methods alone, so that reading flags stays fast.
"""

from polyactor.data.learning import Direction, Distribution, Gradients, Metrics, Outputs
from polyactor.data.rollout import (
    FIELDS,
    NEVER,
    OPTIONAL,
    Along,
    Batch,
    CoreState,
    Memo,
    Moments,
    Pull,
    Rollout,
    Tree,
    along,
    at,
    leaves,
    map_tree,
    named,
)

__all__ = [
    "FIELDS",
    "NEVER",
    "OPTIONAL",
    "Along",
    "Batch",
    "CoreState",
    "Direction",
    "Distribution",
    "Gradients",
    "Memo",
    "Metrics",
    "Moments",
    "Outputs",
    "Pull",
    "Rollout",
    "Tree",
    "along",
    "at",
    "leaves",
    "map_tree",
    "named",
]
