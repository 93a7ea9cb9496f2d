"""Triton's own messages, read from the text of a repository."""

from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


def message_of(text: str) -> Any:
    """The `ModelConfig` message of a `config.pbtxt`."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())
