"""The front door: stands between clients and the bundled tritonserver, which some requests crash.

It lets through battles for the ensembles, health, metadata and statistics, checks each battle against the contract,
takes no more than the engines answer in time, and passes no cancellation on. It knows nothing of how servers start.
"""
