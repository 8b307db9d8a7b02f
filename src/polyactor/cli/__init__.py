"""The command line: flags to a config, and a call of the library."""
