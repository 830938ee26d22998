"""The feature groups: one table of their programs and needs, and how each is attached."""
