"""`arcbox-agent` as PID 1: a small process that sets up the machine, keeps the agent running, and powers off in order.

The agent is its child. A kernel panics when PID 1 ends, so what can fail is not in it: it reaps, it restarts, it says
on the console what went wrong. Nothing heavy is imported here: it stays in memory for as long as the machine is on.
"""

from arcbox_agent.pid1.supervisor import run

__all__ = ["run"]
