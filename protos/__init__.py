"""The wire: messages of fedshare.v1, and how a blob travels in them. Both sides import this room, it imports none."""
