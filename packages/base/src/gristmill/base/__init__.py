"""What every Gristmill package stands on: errors with exit codes, atomic files, typed configuration, command lines, progress."""
