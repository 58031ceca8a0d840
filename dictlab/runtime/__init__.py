"""What a long job needs: files written whole, locks, interruption, progress, an estimate of the time."""
