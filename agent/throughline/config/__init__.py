"""The configuration: its schema, its reader, and the checked values."""
