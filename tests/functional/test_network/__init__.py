"""Tests of networks, each in a namespace that plays the host."""
