"""What brings the plugin to a machine: the launcher now, the installer later. Not the plugin itself."""
