"""A person looks into a build: a shell in the step that failed, or before one; then the step again, or the end."""
