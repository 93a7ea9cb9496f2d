"""What runs this model is in the `preference_core` of the server's environment."""

import triton_python_backend_utils

from preference_core.triton.combine import Combine


class TritonPythonModel(Combine):
    """What Triton's Python backend looks for."""

    triton = triton_python_backend_utils
