"""Other tools that run this one as a step, each in a file of its own."""
