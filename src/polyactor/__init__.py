"""polyactor: the asynchronous actor-critic family, any algorithm under any scheme.

>>> import polyactor as pa
>>> run = pa.train("a3c", env="CartPole-v1", steps=300_000, seed=1)
>>> policy = pa.load(run.path)
>>> action = policy.act(observation)

``__init__.pyi`` lists what is public; each name is loaded when it is first used: the command line starts without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
