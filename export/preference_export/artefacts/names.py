"""Names of the files that artefacts consist of: ONNX Runtime's and TensorRT's own defaults for Triton."""

MODEL_FILE = "model.onnx"


DATA_FILE = "model.onnx.data"


PLAN_FILE = "model.plan"
