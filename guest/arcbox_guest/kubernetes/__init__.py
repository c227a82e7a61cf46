"""Kubernetes in the guest: k3s on the container runtime's containerd."""
