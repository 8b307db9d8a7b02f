"""polyactor: asynchronous actor-critic reinforcement learning, with any algorithm under any scheme of workers.

>>> import polyactor as pa
>>> run = pa.train("a3c", env="CartPole-v1", steps=300_000, seed=1)
>>> policy = pa.load(run.path)
>>> action = policy.act(observation)

``__init__.pyi`` lists the public names. Each is loaded at its first use, so that the command line starts without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
