"""The container runtime of the guest: containerd and dockerd, on the data volume."""
