"""A trained policy for robots: server, client, message format."""
