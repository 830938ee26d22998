"""Ruby: which processes run a server whose threads tell whose request a call is."""
