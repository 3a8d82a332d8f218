"""The one exception for bad input, which the robot's side shares."""

from prism_client.errors import LONGEST_SENTENCE as LONGEST_SENTENCE
from prism_client.errors import PrismError as PrismError
