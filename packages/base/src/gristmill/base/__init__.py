"""What every Gristmill package stands on: errors, atomic files, typed configuration, command lines, progress."""
