"""Writing files and folders so that a kill or a full disk never leaves half of one."""
