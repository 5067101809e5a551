"""The command line: one coordinator, many workers, and the questions people ask them."""
