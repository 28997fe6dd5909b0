"""What happens, as data: events of builds and machines, and the sinks that take them."""
