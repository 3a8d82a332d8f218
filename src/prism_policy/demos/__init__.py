"""Demonstrations made, drawn, replayed, downloaded, and chosen for a run."""
