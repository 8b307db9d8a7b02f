"""Networks: a torso turns one observation into features, a core remembers, heads say what the algorithm asks for."""

from polyactor.models.spec import ModelSpec

__all__ = ["ModelSpec"]
