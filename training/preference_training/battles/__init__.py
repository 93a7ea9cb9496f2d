"""Files of labelled battles: read, split, and described by their lengths."""
