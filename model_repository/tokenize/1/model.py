"""What runs this model is in the `preference_core` of the server's environment."""

import triton_python_backend_utils

from preference_core.triton.tokenize import Tokenize


class TritonPythonModel(Tokenize):
    """What Triton's Python backend looks for."""

    triton = triton_python_backend_utils
