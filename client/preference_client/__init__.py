"""Scores battles on a preference ensemble that Triton serves.

`Scorer` and `AsyncScorer` are the library, `preference-score` the command for files. Only `connection` knows gRPC.
"""

from preference_client.connection import Tls
from preference_client.rows import Failure, Prediction, Row
from preference_client.scorer import AsyncScorer, Scorer

__all__ = ["AsyncScorer", "Failure", "Prediction", "Row", "Scorer", "Tls"]
__version__ = "0.1.0"
