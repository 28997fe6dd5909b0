"""What firebuild keeps: images as an OCI layout, the disks derived from them, and facts in one database."""
