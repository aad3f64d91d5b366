"""Channel groups: the layers that make and read a channel, and cutting channels out of a graph."""
