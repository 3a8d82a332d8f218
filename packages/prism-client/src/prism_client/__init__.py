"""The robot's side of prism-policy: policy client, robot protocol, control loop. Python 3.8 and later, no torch."""

from prism_client.client import PolicyClient as PolicyClient
from prism_client.errors import PrismError as PrismError

__version__ = "0.1.0"
