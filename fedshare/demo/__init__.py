"""The demo: seven tasks made from a seed, and a federation in which things happen."""
