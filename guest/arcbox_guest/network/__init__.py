"""The network of sandboxes: a bridge, a veth pair for each, and NAT to the outside."""
