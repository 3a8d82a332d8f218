"""Observations and their history, which the robot's side stacks in the same way."""

from prism_client.observations import Observation as Observation
from prism_client.observations import stack_history as stack_history
