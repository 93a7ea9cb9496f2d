"""Reading files of rows: formats, limits, ids. It comes after `battles`, and knows nothing of ensembles."""
