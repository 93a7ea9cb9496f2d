"""Names of the files that a member's artefacts consist of, as Triton's backends expect them."""

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
PLAN_FILE = "model.plan"
