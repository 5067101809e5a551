"""The coordinator: takes updates in, merges them one by one, and tells the world about each version.

An update's walk, file by file:

    service   (gRPC)   ->  receive  ->  admit  ->  journal            the receipt is given here
    ============ the seam: the journal is the queue ============
    integrate          ->  transition (pure)  ->  catalog  ->  broadcast
    readers:  service (Watch, Fetch),  lineage (MLflow, with its own cursor)
"""
