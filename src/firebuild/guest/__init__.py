"""The host's end of the guest protocol (protocol/PROTOCOL.md): frames, streams, exec, copy, build."""
