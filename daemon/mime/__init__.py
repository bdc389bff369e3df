"""What RFC 5322 and MIME say about a message, read from hostile bytes.

Below the steps and free of judgement: charsets, header fields, the tree of
parts, HTML as text, delivery reports. Every function here is total (it never
raises on any input) and does work linear in the size of its input, with the
caps of ``limits`` on top. The standard library's ``email`` package is not used
on incoming bytes: in supported versions it raises on some headers, recurses on
deep nesting and needs quadratic time on others (gh-136063, gh-87075, gh-75630).
"""
