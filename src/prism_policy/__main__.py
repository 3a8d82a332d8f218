"""`python -m prism_policy` is `prism`."""

from prism_policy.cli.main import main

main()
