"""The command line: `mvp-edge …`. Nothing here imports torch before a command asks for it."""
