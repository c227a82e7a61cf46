"""The driver `oci`: an OCI runtime (crun or runc) on an overlay of a read-only root file system.

`driver.py` puts the rest together, each module of which has one idea.
"""
