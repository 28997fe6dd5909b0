"""A drop-in for the `firecracker` binary: the same API and command line, the microVM on QEMU's microvm machine."""

# The API that is served: Firecracker's own OpenAPI document of this version.
API_VERSION = "1.17.0-dev"
