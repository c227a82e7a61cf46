"""Speed and memory of the agent, beside their floors."""
