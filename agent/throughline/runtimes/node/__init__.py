"""Node.js: which processes have the preload that says for which request a call is."""
