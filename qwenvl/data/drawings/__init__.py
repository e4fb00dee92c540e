"""Real drawings with the names that people gave them, out of npm and Debian packages: got, rendered, indexed."""
