"""What ``torture.py`` does to runs, files and images, one kind a module."""
