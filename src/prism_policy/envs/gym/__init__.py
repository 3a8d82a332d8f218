"""Any gymnasium environment behind the library's contract: what a user writes, and what runs it."""

from prism_policy.envs.gym.adapter import AdaptedEnv as AdaptedEnv
from prism_policy.envs.gym.adapter import Camera as Camera
from prism_policy.envs.gym.adapter import ObservationAdapter as ObservationAdapter
from prism_policy.envs.gym.adapter import StatePart as StatePart
