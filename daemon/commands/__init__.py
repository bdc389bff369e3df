"""What each command does; daemon.cli only declares them, so that ``postsale --help`` imports nothing heavy."""
