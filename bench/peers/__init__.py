"""What the agent is measured against: one small server a module, run as a process on a listening socket."""
