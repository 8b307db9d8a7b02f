"""The machine a run is on: processors, memory, the terminal."""
