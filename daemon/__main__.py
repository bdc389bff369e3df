"""``python -m daemon`` is ``postsale``."""

from daemon.cli import main

if __name__ == "__main__":
    main()
