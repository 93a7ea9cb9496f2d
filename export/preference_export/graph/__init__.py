"""From a checkpoint to ONNX: the packed decoder, its precision, quantised weights, the written file."""
