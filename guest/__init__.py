"""The machine: what requests are done to. Plain attrs types in, plain attrs types out."""
