"""The version, where every floor can read it."""

from importlib.metadata import version

VERSION = version("dictlab")
