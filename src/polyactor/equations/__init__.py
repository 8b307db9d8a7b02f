"""The mathematics of the methods, on tensors ``[T, B]``: no models, no processes, no environments."""
