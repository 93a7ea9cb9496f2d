"""The model that an artefact is compared with, and the battles that it is compared on."""
