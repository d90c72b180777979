"""What outlives the daemon: incidents and events in SQLite, and on tmpfs what it has not yet."""
