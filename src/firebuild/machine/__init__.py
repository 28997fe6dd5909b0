"""Machines: what one is, its life, its metadata, and repairing what a crash left."""
