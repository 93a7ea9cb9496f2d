"""What the user brings: base, adapters and tokenizer, found, read, refused, merged."""
