"""The command `prism`: a file for each group of commands."""
