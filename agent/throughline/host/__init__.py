"""Facts about the host and its kernel, and the system calls that Python has no function for."""
