"""One module for each TLS library whose functions the agent probes."""
