"""What an artefact is: files and folders that appear whole or not at all, and that say what they were made from."""
