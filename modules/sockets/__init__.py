"""What comes in at a node's sockets and what leaves it as text."""
