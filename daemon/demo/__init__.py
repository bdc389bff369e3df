"""``postsale demo``: the real service on an embedded mail server and a small shop's morning mail."""
