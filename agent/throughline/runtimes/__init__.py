"""One folder for each language runtime whose processes the agent probes."""
