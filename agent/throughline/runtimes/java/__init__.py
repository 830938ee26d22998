"""Java: where HotSpot keeps the thread that runs now, read in the memory of each process."""
