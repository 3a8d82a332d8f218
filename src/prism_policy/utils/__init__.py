"""What at least three rooms need and none owns: files, progress, memory, video."""
