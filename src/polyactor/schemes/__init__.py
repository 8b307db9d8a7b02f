"""Who holds θ, who collects, who differentiates, who applies. One file each; none knows a loss."""

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
