"""The tests of polyactor."""

import os

# As the command line does, before torch is loaded: two test processes on two cores have no core to spin on.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
