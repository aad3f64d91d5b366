"""Channel groups: which layers make and read a channel, and how it is taken out."""
