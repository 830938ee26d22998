"""Which cgroups are traced, and which service each belongs to."""
