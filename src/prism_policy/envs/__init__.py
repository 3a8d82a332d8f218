"""Simulated environments behind one gymnasium interface, their rendering, worker processes and experts; no torch."""
