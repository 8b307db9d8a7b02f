"""Networks: a torso encodes each observation, a core may remember earlier ones, heads predict policy and value.

* `spec`: `ModelSpec`, the settings of a network.
* `actor_critic`: `ActorCritic`, the whole network.
* `encoders`: torsos, an MLP and several CNNs.
* `core`: the LSTM.
* `heads`: outputs for policy, V and Q.
* `action_space`: the parameters that the policy of an action space needs.
* `running_stats`: running means and variances that observations and rewards are normalised by.
"""

from polyactor.models.spec import ModelSpec

__all__ = ["ModelSpec"]
