"""What the commands do, one file each; nothing in here prints."""
