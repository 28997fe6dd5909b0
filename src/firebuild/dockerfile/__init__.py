"""The Dockerfile language, pure: bytes to stages of typed instructions, variables, ignore rules, excerpts."""
