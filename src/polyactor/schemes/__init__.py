"""Schemes say which process holds θ, and which ones collect, differentiate and apply. They do not depend on the loss.

* `sync`: one process does everything.
* `hogwild`: every worker does everything, on θ in shared memory.
* `param_server`: workers collect and differentiate, a server applies.
* `actor_learner`: workers collect, a learner differentiates and applies.
"""

from polyactor.config import Scheme
from polyactor.schemes.actor_learner import ActorLearner
from polyactor.schemes.hogwild import Hogwild
from polyactor.schemes.param_server import ParamServer
from polyactor.schemes.sync import Sync

SCHEMES: dict[str, type[Scheme]] = {
    "sync": Sync,
    "hogwild": Hogwild,
    "param-server": ParamServer,
    "actor-learner": ActorLearner,
}

__all__ = ["SCHEMES", "ActorLearner", "Hogwild", "ParamServer", "Scheme", "Sync"]
