"""What each `scorer` command does; the command line itself is cli.py. Heavy libraries load where they run."""
