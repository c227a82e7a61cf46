"""Virtual machines with the guest image, for people (`make vm`) and tests (`make test-vm`)."""
