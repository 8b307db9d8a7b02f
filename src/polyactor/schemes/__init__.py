"""Who holds θ, who collects, who differentiates, who applies. One file each; none knows a loss."""

from polyactor.config import Scheme
from polyactor.schemes.hogwild import Hogwild
from polyactor.schemes.sync import Sync

SCHEMES: dict[str, type[Scheme]] = {"sync": Sync, "hogwild": Hogwild}

__all__ = ["SCHEMES", "Hogwild", "Scheme", "Sync"]
