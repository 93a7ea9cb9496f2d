"""What an artefact of the exporter is made by, and which files it consists of."""
