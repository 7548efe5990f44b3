"""The version of this distribution, which is also that of the server it was released with."""

__version__ = "0.1.0"
