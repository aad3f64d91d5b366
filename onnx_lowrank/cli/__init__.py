"""The command line: arguments to a library call to an exit code."""
