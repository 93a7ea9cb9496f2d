"""How members are best combined."""
