"""What a folder on disk holds, and the manifest that says what it was made from."""
