"""What an artefact of the exporter is made by, which files it consists of, and how its folder appears."""
