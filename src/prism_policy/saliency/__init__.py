"""What policies look at: maps, their numbers, pictures."""
