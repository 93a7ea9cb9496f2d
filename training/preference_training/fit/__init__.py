"""Fine-tuning one member."""
