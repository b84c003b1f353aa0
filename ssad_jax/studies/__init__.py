"""Studies on simulated systems: commands that write a JSON file and a page for docs/studies."""
