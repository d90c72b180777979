"""The daemon's HTTP API on a unix socket: `server` routes, `status` and `prose` build documents."""
