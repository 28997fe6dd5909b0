"""Checks of a Dockerfile that builds: what BuildKit's linter warns of, under BuildKit's names."""
