"""Published checkpoints, the paper's six models and their cost, and export to ONNX."""
