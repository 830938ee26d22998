"""Builds what a release has beside the bundles: .deb and .rpm of the agent, and the collection."""
