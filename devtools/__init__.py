"""Tools for developing the pack: set-up, a server to test against, the demo. No part of the installed pack."""
