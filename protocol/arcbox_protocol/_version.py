"""The version of this distribution, and of the wire protocol that it speaks."""

__version__ = "0.4.10"
