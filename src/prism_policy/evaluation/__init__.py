"""Rollouts of a policy: outcomes, statistics, comparison, videos."""
