"""Names of the files that a member's artefacts consist of, as Triton's backends expect them, and of their details."""

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
PLAN_FILE = "model.plan"
RANGES_FILE = "calibration.safetensors"

#: Keys of a manifest's details.
WEIGHT_BYTES = "weight_bytes"
DOUBTS = "doubts"
#: GEMMs that are not quantised because of the ranges of what they read, and how many are.
KEPT_GEMMS = "gemms_kept"
QUANTISED_GEMMS = "gemms_quantised"
