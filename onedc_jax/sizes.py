"""How large an image may be: what a header can say, and what a decoder may be made to allocate."""

MAX_SIDE = 65535
"""The largest width or height, in pixels."""
MAX_PIXELS = 2**27
"""The largest width times height."""
