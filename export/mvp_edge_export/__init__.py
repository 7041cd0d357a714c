"""What leaves the server: profiles, bundles, runtimes and their measurements."""
