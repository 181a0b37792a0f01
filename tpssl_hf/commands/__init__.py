"""The commands: each a ``main``, and the public function where there is one."""
