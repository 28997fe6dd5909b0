"""firebuild: bootable root file systems for Firecracker microVMs from Dockerfiles, and the microVMs themselves."""

__version__ = "0.1.0"
