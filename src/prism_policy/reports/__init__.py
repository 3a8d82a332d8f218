"""From rollouts to the report of a run."""
