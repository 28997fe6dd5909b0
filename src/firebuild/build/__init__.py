"""Builds images from Dockerfiles: context, plan, keys and cache, execution in a build machine, the committed result."""
