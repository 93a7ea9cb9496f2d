"""What an ensemble is: its configuration, where its files are, and how its members' logits become one prediction."""
