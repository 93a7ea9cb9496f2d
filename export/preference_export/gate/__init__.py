"""Whether an artefact still is the model it was made from."""
