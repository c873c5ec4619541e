"""What all commands share: argument parsing, errors, exit codes, progress bars, signals, hardware."""
