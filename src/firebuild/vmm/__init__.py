"""Firecracker and nothing else: its API's words, a client of it, and how its process is started."""
