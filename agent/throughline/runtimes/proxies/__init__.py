"""Proxies: for which request of a client a call is made."""
