"""One run of `mvp-edge prune`, from the request to the verified network and its files.

settle → reference → run → verify → rundir; deliver exports
"""
