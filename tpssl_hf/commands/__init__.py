"""What people start: each command and its public function, which take the same keys."""
