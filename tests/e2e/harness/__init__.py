"""What the end-to-end tests stand on: the real binary, a raw client and a raw target, all byte for byte.

`process` runs the binary, `client` and `target` are its two neighbours, `wire` is what both of those share,
`frames` knows RFC 6455, `world` is what a test is handed.
"""
