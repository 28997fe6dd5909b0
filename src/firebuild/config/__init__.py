"""Settings: one table, frozen values, and where each came from."""
