"""Images in and out: tarballs, archives, registries (through skopeo)."""
