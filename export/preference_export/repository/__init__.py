"""From members that passed the gate to a Triton model repository."""
