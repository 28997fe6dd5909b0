"""The use cases of firebuild: what the command line and library users call."""
