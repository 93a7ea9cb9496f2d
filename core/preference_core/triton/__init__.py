"""The programs of the Python models in a Triton repository. They are given the server's own objects."""
