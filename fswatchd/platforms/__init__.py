"""Drivers for the platforms that run VEs, a module each (interface: `inventory.platform`)."""
