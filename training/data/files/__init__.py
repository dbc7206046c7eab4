"""Reads columns from files of any common form; read `training.data.files.reader` first."""
