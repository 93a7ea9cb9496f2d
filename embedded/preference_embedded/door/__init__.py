"""The front door: stands between clients and the bundled tritonserver, which dies of requests that clients may send.

It lets through battles for the ensembles, health, metadata and statistics, checks each battle against the contract,
takes no more than the engines answer in time, and passes no cancellation on. It knows nothing of how servers start.
"""
