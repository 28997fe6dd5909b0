"""Guest kernels: fetched, imported, checked, kept, and the initramfs made for each."""
