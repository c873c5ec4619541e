"""What every command shows and obeys: errors, exit codes, progress bars, signals."""
