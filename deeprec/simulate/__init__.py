"""A world of users whose clicks are known, to try policies in: exact values, the optimum, logs, and an environment.

`World` says with what probability each user clicks on each item, and how their taste moves. `value` is what a policy
earns there and `optimum` what the best one does, by enumeration; `simulate` draws sessions, which are data to learn
from and logs to estimate from. `deeprec.simulate.environment` is the same as a gymnasium environment, for which the
extra `simulate` is needed.
"""

from __future__ import annotations

from deeprec.simulate.enumeration import Optimum, optimum, value
from deeprec.simulate.policies import Policy, best_policy, softmax_policy, uniform_policy
from deeprec.simulate.sessions import SimulatedLog, simulate
from deeprec.simulate.world import Sessions, World

__all__ = [
    "Optimum",
    "Policy",
    "Sessions",
    "SimulatedLog",
    "World",
    "best_policy",
    "optimum",
    "simulate",
    "softmax_policy",
    "uniform_policy",
    "value",
]
